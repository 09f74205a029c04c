package tunnel

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// memMux is a mux in memory, without time of its own: for tests under synctest,
// where neither sockets nor yamux (its pool of timers is shared) may be.
type memMux struct {
	peer     *memMux
	incoming chan *memStream
	hole     *atomic.Bool // shared: what is written vanishes, and so does a close
	heard    atomic.Uint64

	once sync.Once
	done chan struct{}
	why  *ClosedError // set before done is closed, if the other side closed
}

type memAddr struct{}

func (memAddr) Network() string { return "mem" }
func (memAddr) String() string  { return "mem" }

// memLinks returns the two ends of a link, and a switch that makes it a black hole.
func memLinks() (dialled, accepted *link, hole *atomic.Bool) {
	hole = &atomic.Bool{}
	end := func(dialled bool) (*memMux, *link) {
		m := &memMux{incoming: make(chan *memStream, 16), done: make(chan struct{}), hole: hole}
		return m, &link{
			mux: m, transport: "mem", dialled: dialled, local: memAddr{}, remote: memAddr{},
			heard: m.heard.Load, acked: true,
			explain: func(err error) *ClosedError {
				if m.why != nil {
					return m.why
				}
				return &ClosedError{Code: wire.Unavailable, Err: err}
			},
		}
	}
	a, dialled := end(true)
	b, accepted := end(false)
	a.peer, b.peer = b, a
	return dialled, accepted, hole
}

func (m *memMux) open(ctx context.Context) (muxStream, error) {
	c1, c2 := net.Pipe()
	select {
	case m.peer.incoming <- newMemStream(c2, m.peer):
		return newMemStream(c1, m), nil
	case <-m.done:
		return nil, errMuxGone
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *memMux) accept(ctx context.Context) (muxStream, error) {
	select {
	case s := <-m.incoming:
		return s, nil
	case <-m.done:
		return nil, errMuxGone
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *memMux) close(code wire.Code, msg string, linger time.Duration) {
	select {
	case <-m.done:
	case <-time.After(linger):
	}
	if !m.hole.Load() {
		m.peer.once.Do(func() {
			m.peer.why = &ClosedError{Code: code, Message: msg, Remote: true}
			close(m.peer.done)
		})
	}
	m.once.Do(func() { close(m.done) })
}

// memStream ends with its mux; it has no half-close.
type memStream struct {
	net.Conn
	m      *memMux
	once   sync.Once
	closed chan struct{} // here
}

func newMemStream(c net.Conn, m *memMux) *memStream {
	return &memStream{Conn: c, m: m, closed: make(chan struct{})}
}

func (s *memStream) Read(p []byte) (int, error) {
	stop := s.watch()
	defer stop()
	n, err := s.Conn.Read(p)
	if n > 0 {
		s.m.heard.Add(1)
	}
	if err == io.EOF && s.m.hole.Load() {
		select {
		case <-s.m.done:
		case <-s.closed:
		}
	}
	return n, s.mapErr(err)
}

func (s *memStream) Write(p []byte) (int, error) {
	if s.m.hole.Load() {
		return len(p), nil
	}
	stop := s.watch()
	defer stop()
	n, err := s.Conn.Write(p)
	return n, s.mapErr(err)
}

// watch closes the pipe when the mux ends meanwhile.
func (s *memStream) watch() func() {
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-s.m.done:
			_ = s.Conn.Close()
		case <-over:
		}
	})
	return func() { close(over); wg.Wait() }
}

func (s *memStream) mapErr(err error) error {
	select {
	case <-s.m.done:
		if err != nil {
			return errMuxGone
		}
	default:
	}
	switch {
	case err == nil || err == io.EOF:
		return err
	case isTimeout(err):
		return errTimeout
	}
	return errStreamClosed
}

func (s *memStream) closeWrite() error {
	s.once.Do(func() { close(s.closed) })
	return s.Conn.Close()
}

func (s *memStream) close()                { _ = s.closeWrite() }
func (s *memStream) reset(wire.Code)       { _ = s.closeWrite() }
func (s *memStream) onAbort(func()) func() { return func() {} }

// memSessions makes a session in memory.
func memSessions(ctx context.Context, agentCfg, brokerCfg Config) (agent, broker *Session, hole *atomic.Bool, err error) {
	d, a, hole := memLinks()
	done := make(chan error, 1)
	go func() {
		var berr error
		broker, berr = establish(ctx, a, brokerCfg.populate())
		done <- berr
	}()
	agent, err = establish(ctx, d, agentCfg.populate())
	if berr := <-done; err == nil {
		err = berr
	}
	return agent, broker, hole, err
}
