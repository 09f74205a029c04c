package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/mooring-edge/mooring/internal/bulk"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	// yamuxBacklog is how many opens may wait to be seen by the other side. It is
	// part of the protocol: yamux takes it to be the same on both sides.
	yamuxBacklog = 256
	// maxEarlyResets bounds what is remembered of resets whose stream is not known
	// here, because it is either not yet accepted or already forgotten.
	maxEarlyResets = 2 * yamuxBacklog
)

// yamuxMux is a mux over yamux on TLS. Streams are its own (docs/decisions/0022): yamux has the session, reads what comes, and sees of that
// what is no stream's. Yamux has no reset, so a stream's abnormal
// end travels as a control frame, see yamuxstream.go.
type yamuxMux struct {
	ys       *yamux.Session
	raw      net.Conn // what TLS runs on
	conn     *frameConn
	maxLive  int
	next     atomic.Uint64 // the number of the next stream of ours
	incoming chan uint32   // streams that the other side has opened and nobody has accepted
	unacked  chan struct{} // one token for each stream of ours that the other side has not been seen to know

	wg      sync.WaitGroup // the goroutines that end streams
	gone    atomic.Bool    // release was called
	ctlIdle atomic.Bool    // whoever reads the control stream has obeyed all that it took, and waits for more

	mu      sync.Mutex // guards the following
	closed  bool       // no more goroutines are started
	live    map[uint32]*yamuxStream
	early   map[uint32]wire.Reset
	order   []uint32 // early's keys, oldest first
	send    func(frame []byte, stop <-chan struct{}) error
	ctl     *yamuxStream
	ctlDone bool            // nobody reads the control stream any more
	waiting []chan struct{} // barriers
}

// newYamuxLink takes over conn, after its handshake; raw is what conn runs on.
func newYamuxLink(conn *tls.Conn, raw *bulk.Conn, dialled bool, c Config) (*link, error) {
	raw.Direct()
	windows := newYamuxWindows(c.StreamWindow, c.SessionWindow)
	fc := newFrameConn(conn, raw, windows)
	yc := yamux.DefaultConfig() // most of it is about streams, which it has none of
	yc.EnableKeepAlive = false  // the heartbeat does it
	yc.LogOutput, yc.Logger = nil, yamuxLogger{c.Logger}
	m := &yamuxMux{
		raw: raw.Conn, conn: fc, maxLive: maxLive(c),
		incoming: make(chan uint32, yamuxBacklog),
		unacked:  make(chan struct{}, yamuxBacklog),
		live:     make(map[uint32]*yamuxStream),
		early:    make(map[uint32]wire.Reset),
	}
	fc.lost, fc.spawn, fc.frames.opened = m.release, m.spawn, m.opened
	start := yamux.Server
	m.next.Store(2)
	if dialled { // yamux's client has the odd numbers
		start = yamux.Client
		m.next.Store(1)
		fc.frames.theirs = 0
	}
	var err error
	if m.ys, err = start(fc, yc); err != nil {
		return nil, fmt.Errorf("start yamux: %w", err)
	}
	return &link{
		mux:       m,
		transport: TransportTCP,
		dialled:   dialled,
		state:     conn.ConnectionState(),
		local:     conn.LocalAddr(),
		remote:    conn.RemoteAddr(),
		heard:     fc.in.Load,
		explain:   m.explain,
	}, nil
}

func (m *yamuxMux) open(context.Context) (muxStream, error) {
	select {
	case m.unacked <- struct{}{}:
	default:
		return nil, errStreamLimit
	}
	y, err := m.begin()
	if err != nil {
		<-m.unacked
		return nil, err
	}
	return y, nil
}

// begin makes a stream. The other side learns of it with the first thing that is written.
func (m *yamuxMux) begin() (*yamuxStream, error) {
	if m.over() || m.conn.frames.away.Load() {
		return nil, errMuxGone
	}
	id := m.next.Add(2) - 2
	if id >= math.MaxUint32-1 {
		m.fail() // a session more has all numbers again
		return nil, errMuxGone
	}
	if err := m.conn.windows.opened(uint32(id)); err != nil {
		m.fail()
		return nil, errMuxGone
	}
	m.conn.begin(uint32(id), yamuxFlagSYN)
	return m.register(uint32(id), false), nil
}

// opened is told of each stream that the other side opens.
func (m *yamuxMux) opened(id uint32) error {
	select {
	case m.incoming <- id:
		return nil
	default:
		m.conn.windows.closed(id)
		return m.conn.turnDown(id)
	}
}

func (m *yamuxMux) accept(ctx context.Context) (muxStream, error) {
	select {
	case id := <-m.incoming:
		m.conn.begin(id, yamuxFlagACK)
		y := m.register(id, true)
		m.mu.Lock()
		defer m.mu.Unlock()
		if len(m.live) > 2*m.maxLive { // twice: the map holds the streams of both sides
			return nil, errFlood
		}
		return y, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-m.ys.CloseChan():
		return nil, errMuxGone
	}
}

func (m *yamuxMux) close(_ wire.Code, _ string, linger time.Duration) {
	if linger > 0 {
		// No half-close meanwhile: what streams still have to write would fail, the connection would be closed for it, and with
		// bytes of the other side unread that takes back what was sent.
		t := time.NewTimer(linger)
		defer t.Stop()
		select {
		case <-m.ys.CloseChan():
		case <-t.C:
		}
	}
	m.release()
	_ = m.raw.Close() // first: closing TLS would wait for room for its alert
	_ = m.ys.Close()
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.wg.Wait()
}

// release lets go whoever waits for a stream. It is called before yamux shuts down.
func (m *yamuxMux) release() {
	if m.gone.Swap(true) {
		return
	}
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.live))
	m.mu.Unlock()
	for _, y := range all {
		y.release()
	}
}

// over says that the session has ended, or is about to.
func (m *yamuxMux) over() bool { return m.gone.Load() || m.ys.IsClosed() }

// spawn runs f in a goroutine that close waits for. It returns false once closed.
func (m *yamuxMux) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.wg.Go(f)
	return true
}

// fail ends a session whose connection can not be trusted to be in step any more.
func (m *yamuxMux) fail() { _ = m.raw.Close() }

// explain says why the connection ended.
func (m *yamuxMux) explain(err error) *ClosedError {
	if cause := m.conn.failure(); cause != nil {
		err = cause
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &ClosedError{Code: wire.Unavailable, Message: "the connection was closed without a goodbye", Remote: true}
	case errors.Is(err, errYamuxPing), errors.Is(err, errYamuxWindow), errors.Is(err, errYamuxTwice), errors.Is(err, errYamuxNumber):
		return &ClosedError{Code: wire.BadRequest, Message: err.Error()}
	case errors.Is(err, errFlood):
		return &ClosedError{Code: wire.Overloaded, Message: err.Error()}
	case errors.Is(err, syscall.ECONNRESET):
		return &ClosedError{Code: wire.Unavailable, Remote: true, Err: err}
	}
	return &ClosedError{Code: wire.Unavailable, Err: err}
}

// register makes a stream known to resets, one that came earlier included.
func (m *yamuxMux) register(id uint32, acked bool) *yamuxStream {
	w := m.conn.windows.of(id)
	y := &yamuxStream{m: m, id: id, window: w, in: w.in, acked: acked, kick: make(chan struct{}, 1)}
	m.mu.Lock()
	m.live[id] = y
	y.now = m.ctl == nil // the first one is the control stream
	r, early := m.early[id]
	if early {
		delete(m.early, id)
		m.order = slices.DeleteFunc(m.order, func(other uint32) bool { return other == id })
	}
	m.mu.Unlock()
	if m.gone.Load() {
		y.release()
	}
	if early {
		y.obey(r)
	}
	return y
}

// forget is called once neither side has anything more to say on y.
func (m *yamuxMux) forget(y *yamuxStream) {
	m.mu.Lock()
	delete(m.live, y.id)
	m.mu.Unlock()
	m.conn.windows.closed(y.id)
}

// onReset is called for each reset frame, in the order of the control stream.
func (m *yamuxMux) onReset(r wire.Reset) {
	m.mu.Lock()
	y := m.live[r.Stream]
	if y == nil {
		m.remember(r)
	}
	m.mu.Unlock()
	if y != nil {
		y.obey(r)
	}
}

// remember keeps a reset for a stream that may yet be accepted. mu is held.
func (m *yamuxMux) remember(r wire.Reset) {
	if old, ok := m.early[r.Stream]; ok {
		r.What |= old.What
	} else {
		if len(m.order) == maxEarlyResets {
			delete(m.early, m.order[0])
			m.order = slices.Delete(m.order, 0, 1)
		}
		m.order = append(m.order, r.Stream)
	}
	m.early[r.Stream] = r
}

// sendReset returns true once the frame is on its way, false if it can not be, as the session is
// ending: then a FIN must not follow either, which could still get out and would pass for a clean end.
func (m *yamuxMux) sendReset(r wire.Reset) bool {
	m.mu.Lock()
	send := m.send
	m.mu.Unlock()
	return send == nil || send(wire.AppendReset(nil, r), m.ys.CloseChan()) == nil
}

// yamuxLogger hands yamux's words on. They are details: what ended a session is told by the session.
type yamuxLogger struct{ log *slog.Logger }

func (l yamuxLogger) Print(v ...any)            { l.put(fmt.Sprint(v...)) }
func (l yamuxLogger) Printf(f string, v ...any) { l.put(fmt.Sprintf(f, v...)) }
func (l yamuxLogger) Println(v ...any)          { l.put(fmt.Sprintln(v...)) }

func (l yamuxLogger) put(s string) {
	l.log.Debug(strings.TrimSpace(s), "transport", string(TransportTCP))
}
