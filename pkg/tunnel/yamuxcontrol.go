package tunnel

import (
	"io"
	"slices"
)

// attach takes the control stream into use for resets, and returns the reader
// by which, from then on, it is to be read.
func (m *yamuxMux) attach(ctl muxStream, send func([]byte, <-chan struct{}) error) io.Reader {
	y := ctl.(*yamuxStream)
	m.conn.windows.fix(y.window)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.send, m.ctl = send, y
	return &controlReader{m: m, take: y.in.take, took: y.took, wake: y.in.wake, over: func() bool {
		over, _ := y.in.ended()
		return over
	}}
}

// detach says that no more control frames are obeyed.
func (m *yamuxMux) detach() { m.passAll() }

// barrier returns once all control frames were obeyed that arrived before the
// call; false means that the session ended instead. Whoever reads the control
// stream lets it pass when there is nothing left to read.
func (m *yamuxMux) barrier() bool {
	m.mu.Lock()
	if m.ctl == nil || m.ctlDone {
		m.mu.Unlock()
		return false
	}
	if over, _ := m.ctl.in.ended(); !over && !m.ctl.in.ready() && m.ctlIdle.Load() { // in this order: who takes what was there is busy first
		m.mu.Unlock()
		return true
	}
	passed := make(chan struct{})
	m.waiting = append(m.waiting, passed)
	ctl := m.ctl
	m.mu.Unlock()
	ctl.in.poke()
	<-passed
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.ctlDone
}

// barriers returns how many wait.
func (m *yamuxMux) barriers() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.waiting)
}

// pass lets the first n of the waiting barriers go.
func (m *yamuxMux) pass(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.waiting[:n] {
		close(w)
	}
	m.waiting = slices.Delete(m.waiting, 0, n)
}

// passAll lets all go, and those to come.
func (m *yamuxMux) passAll() {
	m.mu.Lock()
	m.ctlDone = true
	n := len(m.waiting)
	m.mu.Unlock()
	m.pass(n)
}

// controlReader reads the control stream and lets barriers pass when it has read all.
type controlReader struct {
	m    *yamuxMux
	take func(p []byte) int // reads what is there, and waits for nothing
	took func(n int)        // is told of it
	over func() bool        // nothing is there, and nothing more comes
	wake <-chan struct{}    // has something when there is cause to look again
}

// Read implements io.Reader. It is called again only when all it returned before was obeyed.
func (r *controlReader) Read(p []byte) (int, error) {
	for {
		// Only for those who waited before is there nothing left: what a later one waits for may have come since
		// this read found nothing.
		due := r.m.barriers()
		r.m.ctlIdle.Store(false) // before anything is taken: see barrier
		if n := r.take(p); n > 0 || len(p) == 0 {
			r.took(n)
			return n, nil
		}
		over := r.over()
		if !over && !r.m.over() {
			r.m.pass(due)
			r.m.ctlIdle.Store(true)
			if r.await() {
				continue
			}
		}
		r.m.passAll()
		if !over || r.m.over() {
			return 0, errMuxGone
		}
		return 0, io.EOF
	}
}

// await returns true once there is cause to look again, false once the session has ended.
func (r *controlReader) await() bool {
	select {
	case <-r.wake:
		return true
	case <-r.m.ys.CloseChan():
		return false
	}
}
