package tunnel

import (
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

// attach takes the control stream into use for resets, and returns the reader
// by which, from then on, it is to be read.
func (m *yamuxMux) attach(ctl muxStream, send func([]byte, <-chan struct{}) error) io.Reader {
	ys := ctl.(*yamuxStream).ys
	m.mu.Lock()
	defer m.mu.Unlock()
	m.send, m.ctl = send, ys
	return &controlReader{m: m, ys: ys}
}

// detach says that no more control frames are obeyed.
func (m *yamuxMux) detach() { m.pass(true) }

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

// pass lets the waiting barriers go.
func (m *yamuxMux) pass(done bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ctlDone = m.ctlDone || done
	if m.ctl != nil && !m.gone.Load() {
		_ = m.ctl.SetReadDeadline(time.Time{})
	}
	for _, w := range m.waiting {
		close(w)
	}
	clear(m.waiting)
	m.waiting = m.waiting[:0]
}

// controlReader reads the control stream and lets barriers pass when it has read all.
type controlReader struct {
	m  *yamuxMux
	ys *yamux.Stream
}

// Read implements io.Reader. It is called again only when all it returned before was obeyed.
func (r *controlReader) Read(p []byte) (int, error) {
	for {
		n, err := r.ys.Read(p)
		switch {
		case n > 0:
			return n, nil
		case isTimeout(err) && !r.m.gone.Load():
			r.m.pass(false)
		case err == nil: // an empty p
			return 0, nil
		default:
			r.m.pass(true)
			if r.m.gone.Load() {
				err = errMuxGone
			}
			return 0, err
		}
	}
}
