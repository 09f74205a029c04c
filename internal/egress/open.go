package egress

import (
	"context"
	"sync"
)

// openDials counts the dials that are being answered or carried.
type openDials struct {
	mu   sync.Mutex // guards the following
	n    int
	idle chan struct{} // closed when n becomes 0; nil: nobody waits
}

func (o *openDials) begin() (end func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.n++
	return o.end
}

func (o *openDials) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.n--; o.n == 0 && o.idle != nil {
		close(o.idle)
		o.idle = nil
	}
}

// Open returns how many dials are being answered or carried.
func (s *Server) Open() int {
	s.open.mu.Lock()
	defer s.open.mu.Unlock()
	return s.open.n
}

// WaitIdle returns when no dial is being answered or carried, or ctx has ended.
func (s *Server) WaitIdle(ctx context.Context) {
	o := &s.open
	o.mu.Lock()
	if o.n == 0 {
		o.mu.Unlock()
		return
	}
	if o.idle == nil {
		o.idle = make(chan struct{})
	}
	idle := o.idle
	o.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}
