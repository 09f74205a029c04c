package tunnel

import (
	"io"
	"slices"
	"time"
)

// attach takes the control stream into use for resets, and returns the reader
// by which, from then on, it is to be read.
func (m *yamuxMux) attach(ctl muxStream, send func([]byte, <-chan struct{}) error) io.Reader {
	y := ctl.(*yamuxStream)
	m.conn.windows.fix(y.window)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.send, m.ctl = send, y.ys
	return &controlReader{m: m, ys: y.ys, took: func(n int) {
		y.took(n)
		y.ys.Shrink() // an idle session holds no buffer for its next heartbeat
	}}
}

// detach says that no more control frames are obeyed.
func (m *yamuxMux) detach() { m.passAll() }

// barrier returns once all control frames were obeyed that arrived before the
// call; false means that the session ended instead. It works by a deadline on
// the control stream: whoever reads it is told of that only when there is
// nothing left to read.
func (m *yamuxMux) barrier() bool {
	m.mu.Lock()
	if m.ctl == nil || m.ctlDone {
		m.mu.Unlock()
		return false
	}
	passed := make(chan struct{})
	m.waiting = append(m.waiting, passed)
	_ = m.ctl.SetReadDeadline(aLongTimeAgo)
	m.mu.Unlock()
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

// pass lets the first n of the waiting barriers go. The deadline stays for the others.
func (m *yamuxMux) pass(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.waiting[:n] {
		close(w)
	}
	m.waiting = slices.Delete(m.waiting, 0, n)
	if len(m.waiting) == 0 && m.ctl != nil && !m.gone.Load() {
		_ = m.ctl.SetReadDeadline(time.Time{})
	}
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
	ys   io.Reader
	took func(n int) // see yamuxStream
}

// Read implements io.Reader. It is called again only when all it returned before was obeyed.
func (r *controlReader) Read(p []byte) (int, error) {
	for {
		// Only for those who waited before is there nothing left: what a later one waits for may have come since
		// this read found nothing.
		due := r.m.barriers()
		n, err := r.ys.Read(p)
		switch {
		case n > 0:
			r.took(n)
			return n, nil
		case isTimeout(err) && !r.m.gone.Load():
			r.m.pass(due)
		case err == nil: // an empty p
			return 0, nil
		default:
			r.m.passAll()
			if r.m.gone.Load() {
				err = errMuxGone
			}
			return 0, err
		}
	}
}
