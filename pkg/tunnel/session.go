package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// lingerTime bounds how long the end of a session waits for the goodbye to go
// out, and then for the other side to have read it.
const lingerTime = time.Second

// Session is one connection between an agent and a broker; both ends have one.
// All methods may be called at any time from any goroutine.
type Session struct {
	l     *link
	cfg   Config
	log   *slog.Logger
	meter meter
	peer  wire.Hello
	since time.Time

	ctx    context.Context // ends with the session
	cancel context.CancelCauseFunc

	once     sync.Once
	done     chan struct{} // closed once err is set
	err      *ClosedError
	finished chan struct{}  // closed once the connection is closed and the loops have ended
	loops    sync.WaitGroup // readControl, acceptLoop, and now and then writeControl
	handlers sync.WaitGroup

	pulse pulse
	beat  metronome

	queue   chan controlFrame
	mute    chan struct{} // closed once no control frame can be sent any more
	wmu     sync.Mutex    // guards the following, and the closing of mute
	ctl     muxStream     // what control frames are written to; nil: the session has not started
	writing bool          // writeControl runs

	leaving leaving
	endings endings

	out, in           direction
	bytesIn, bytesOut atomic.Uint64
	writes            atomic.Uint64 // calls of Stream.Write
}

// direction counts the streams that one side opened.
type direction struct {
	streams, pending limiter
	opened           atomic.Uint64
}

// open is how many streams were accepted and not closed.
func (d *direction) open() int {
	return int(max(d.streams.n.Load()-d.pending.n.Load(), 0))
}

// Stats is what a session has measured.
type Stats struct {
	RTT         time.Duration // of the last heartbeat; 0: none yet
	OpenStreams int           // now, opened by either side
	Opened      uint64        // streams accepted since the start, either way
	BytesIn     uint64        // read from streams
	BytesOut    uint64        // written to streams
	Since       time.Time     // when the session began
	LastHeard   time.Time     // when something last arrived, as it was last looked: a few seconds ago, half a heartbeat where the session is idle
}

// newSession makes a session of l; start gets it going.
func newSession(l *link, cfg Config) *Session {
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &Session{
		l: l, cfg: cfg,
		log:      cfg.Logger.With("transport", string(l.transport), "remote", l.remote.String()),
		meter:    cfg.Metrics.meter(l.transport),
		since:    time.Now(),
		ctx:      ctx,
		cancel:   cancel,
		done:     make(chan struct{}),
		finished: make(chan struct{}),
		queue:    make(chan controlFrame, 16),
		mute:     make(chan struct{}),
		leaving:  newLeaving(),
	}
	for _, d := range []*direction{&s.out, &s.in} {
		d.streams.max, d.pending.max = int64(cfg.MaxStreams), int64(cfg.MaxPending)
		d.streams.released = s.noteQuiet
	}
	s.pulse.init(cfg, l, s.since)
	return s
}

// Done returns a channel that is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns why the session ended, a *ClosedError; nil while it has not.
func (s *Session) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// ConnectionState returns the TLS state, in it the other side's verified certificates.
func (s *Session) ConnectionState() tls.ConnectionState { return s.l.state }

// PeerHello returns what the other side said of itself.
func (s *Session) PeerHello() wire.Hello { return s.peer }

// Transport returns what carries the session.
func (s *Session) Transport() Transport { return s.l.transport }

// LocalAddr returns this end's address.
func (s *Session) LocalAddr() net.Addr { return s.l.local }

// RemoteAddr returns the other side's address, as seen from here.
func (s *Session) RemoteAddr() net.Addr { return s.l.remote }

// Stats returns the session's figures.
func (s *Session) Stats() Stats {
	return Stats{
		RTT:         time.Duration(s.pulse.rtt.Load()),
		OpenStreams: s.in.open() + s.out.open(),
		Opened:      s.in.opened.Load() + s.out.opened.Load(),
		BytesIn:     s.bytesIn.Load(),
		BytesOut:    s.bytesOut.Load(),
		Since:       s.since,
		LastHeard:   time.Unix(0, s.pulse.lastHeard.Load()),
	}
}

// Admitted says that the accepting side knows whose the session is and has let it in.
// Until then it counts as a stranger's (AcceptorConfig.Enter). Calls after the
// first, and those of the dialling side, do nothing.
func (s *Session) Admitted() {
	if s.l.admitted != nil {
		s.l.admitted()
	}
}

// Close ends the session and its streams. The other side learns code and msg.
// It returns when all is torn down, within some two seconds even if the other
// side takes nothing any more; handlers may still be on their way out.
func (s *Session) Close(code wire.Code, msg string) error {
	s.terminate(&ClosedError{Code: code, Message: msg}, lingerTime)
	<-s.finished
	return nil
}

// SendBundle tells an agent which CAs vouch for brokers from now on. It returns
// once the bundle is written, which is not yet read; the answer is a status.
func (s *Session) SendBundle(b wire.Bundle) error {
	f, err := wire.AppendBundle(nil, b)
	if err != nil {
		return err
	}
	return s.sendFrame(f)
}

// SendStatus tells a broker what the agent trusts and holds. It returns once the status is written.
func (s *Session) SendStatus(st wire.Status) error {
	f, err := wire.AppendStatus(nil, st)
	if err != nil {
		return err
	}
	return s.sendFrame(f)
}

// SendNetwork tells an agent what its tenant's cluster looks like from now on. It returns once that is written.
func (s *Session) SendNetwork(n wire.Network) error {
	f, err := wire.AppendNetwork(nil, n)
	if err != nil {
		return err
	}
	return s.sendFrame(f)
}

func (s *Session) sendFrame(f []byte) error {
	if err := s.send(f, s.done); err != nil {
		return s.streamErr(err)
	}
	return nil
}

// fail ends the session for a fault of the other side, which is told.
func (s *Session) fail(code wire.Code, msg string) {
	s.terminate(&ClosedError{Code: code, Message: msg}, lingerTime)
}

// terminate ends the session, once, and does not wait for that. Only with a
// linger is the other side given time to read why.
func (s *Session) terminate(why *ClosedError, linger time.Duration) {
	s.once.Do(func() {
		s.err = why
		s.meter.sessionEnded(why.Code)
		close(s.done)
		s.cancel(why)
		s.leaving.stop()
		go s.teardown(why, linger)
	})
}

func (s *Session) teardown(why *ClosedError, linger time.Duration) {
	s.endings.run()
	if linger > 0 {
		late := make(chan struct{})
		t := time.AfterFunc(linger, func() { close(late) })
		bye := wire.AppendGoodbye(nil, wire.Goodbye{Code: why.Code, Message: why.Message})
		if s.send(bye, late) != nil {
			linger = 0
		}
		t.Stop()
	}
	s.l.close(why.Code, why.Message, linger)
	s.beat.stop()
	s.muteControl()
	s.loops.Wait()
	close(s.finished)
}

// wait returns when nothing of the session runs any more, handlers included.
func (s *Session) wait() {
	<-s.finished
	s.handlers.Wait()
}

// streamErr makes of an error of the mux what a user of the session should see:
// once the connection is gone, the reason why.
func (s *Session) streamErr(err error) error {
	var (
		reset  *ResetError
		closed *ClosedError
	)
	switch {
	case err == errTimeout, err == errStreamClosed, errors.As(err, &reset):
		return err
	case errors.As(err, &closed), errors.Is(err, errMuxGone):
		// The loop that reads the control stream sees the same, and knows more.
		t := time.NewTimer(lingerTime)
		defer t.Stop()
		select {
		case <-s.done:
			return s.err
		case <-t.C:
		}
		if closed != nil {
			return closed
		}
	}
	return &ClosedError{Code: wire.Unavailable, Err: err}
}
