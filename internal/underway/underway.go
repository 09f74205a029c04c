// Package underway counts what goes on, for somebody who waits until nothing does: a broker that is to stop.
package underway

import (
	"context"
	"sync"
)

// Count is how many things go on. The zero value is none. Safe for concurrent use.
type Count struct {
	mu   sync.Mutex // guards the following
	n    int
	idle chan struct{} // closed when n becomes 0; nil: nobody waits
}

// Begin counts one more, until end is called, once.
func (c *Count) Begin() (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.end
}

func (c *Count) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// N is how many there are now.
func (c *Count) N() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// WaitIdle returns when there is none, or ctx has ended.
func (c *Count) WaitIdle(ctx context.Context) {
	c.mu.Lock()
	if c.n == 0 {
		c.mu.Unlock()
		return
	}
	if c.idle == nil {
		c.idle = make(chan struct{})
	}
	idle := c.idle
	c.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}
