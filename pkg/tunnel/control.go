package tunnel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// controlFrame is one encoded frame on its way out.
type controlFrame struct {
	b    []byte
	sent chan error // of capacity 1; nil: nobody waits
}

// control is the control stream while the session is being set up.
type control struct {
	raw muxStream
	src io.Reader // what r reads from: raw, and later what the mux puts before it
	r   *bufio.Reader
	ok  bool // the preamble has gone by: what is written here is frames
}

// Read implements io.Reader for the bufio.Reader.
func (c *control) Read(p []byte) (int, error) { return c.src.Read(p) }

// establish says hello on a fresh link and returns the running session. A link
// that fails to is closed with a code. It takes no longer than ctx and
// Config.HandshakeTimeout.
func establish(ctx context.Context, l *link, cfg Config) (*Session, error) {
	return introduce(ctx, l, cfg, true)
}

// introduce is establish, but may leave it to the caller to run acceptLoop, and then wait for the session.
func introduce(ctx context.Context, l *link, cfg Config, accept bool) (*Session, error) {
	s := newSession(l, cfg)
	ctx, cancel := context.WithTimeout(ctx, cfg.HandshakeTimeout)
	defer cancel()
	c, err := s.greet(ctx)
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, errTimeout) {
			err = fmt.Errorf("no hello from %s in time: %w", l.remote, err)
		}
		s.rejectLink(c, err)
		s.cancel(err)
		return nil, err
	}
	s.start(c, accept)
	return s, nil
}

// greet exchanges hellos. The dialling side opens the control stream and
// speaks first. The control stream is returned if there is one, even with an error.
func (s *Session) greet(ctx context.Context) (*control, error) {
	var (
		c   = &control{}
		err error
	)
	if s.l.dialled {
		c.raw, err = s.l.open(ctx)
	} else {
		c.raw, err = s.l.accept(ctx)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = errTimeout
		}
		return nil, fmt.Errorf("control stream: %w", s.setupErr(err))
	}
	defer context.AfterFunc(ctx, func() {
		_ = c.raw.SetReadDeadline(aLongTimeAgo)
		_ = c.raw.SetWriteDeadline(aLongTimeAgo)
	})()
	c.src = c.raw
	c.r = bufio.NewReaderSize(c, 256) // of a heartbeat; each session has one
	if s.l.dialled {
		c.ok = true
		hello, err := s.helloBytes(true)
		if err != nil {
			return c, err
		}
		_, werr := c.raw.Write(hello)
		err = s.readHello(c) // which, also after a failed write, may say what is wrong
		if err != nil && werr != nil && !isClosedBy(err) {
			err = fmt.Errorf("send hello: %w", s.setupErr(werr))
		}
		return c, err
	}
	pre, err := wire.ReadPreamble(c.r)
	if err != nil {
		return c, fmt.Errorf("first stream: %w", s.setupErr(err))
	}
	if pre.Kind != wire.KindControl {
		return c, fmt.Errorf("%w: the first stream is a %s stream, must be the control stream", wire.ErrMalformed, pre.Kind)
	}
	c.ok = true
	if err := s.readHello(c); err != nil {
		return c, err
	}
	hello, err := s.helloBytes(false)
	if err != nil {
		return c, err
	}
	if _, err := c.raw.Write(hello); err != nil {
		return c, fmt.Errorf("send hello: %w", s.setupErr(err))
	}
	return c, nil
}

// isClosedBy says whether err is the other side's own word on why it closed.
func isClosedBy(err error) bool {
	var closed *ClosedError
	return errors.As(err, &closed) && closed.Remote
}

// helloBytes is this end's hello, for the dialling side behind the stream's preamble.
func (s *Session) helloBytes(preamble bool) ([]byte, error) {
	var b []byte
	if preamble {
		var err error
		if b, err = wire.AppendPreamble(b, wire.Preamble{Kind: wire.KindControl}); err != nil {
			return nil, err
		}
	}
	return wire.AppendHello(b, s.cfg.Hello())
}

// readHello reads the other side's hello: the first frame, or the goodbye that came in its place.
func (s *Session) readHello(c *control) error {
	f, err := wire.ReadFrame(c.r, nil)
	if err != nil {
		return fmt.Errorf("hello: %w", s.setupErr(err))
	}
	switch f.Type {
	case wire.FrameHello:
		s.peer, err = wire.ParseHello(f.Payload)
		return err
	case wire.FrameGoodbye:
		g, err := wire.ParseGoodbye(f.Payload)
		if err != nil {
			return err
		}
		return &ClosedError{Code: g.Code, Message: g.Message, Remote: true}
	}
	return fmt.Errorf("%w: control frame %d before the hello", wire.ErrMalformed, f.Type)
}

// setupErr makes the errors of a link readable before there is a session that could.
func (s *Session) setupErr(err error) error {
	if errors.Is(err, wire.ErrMalformed) || errors.Is(err, errTimeout) || errors.Is(err, errStreamLimit) {
		return err
	}
	var closed *ClosedError
	if errors.As(err, &closed) {
		return err
	}
	return s.l.explain(err)
}

// rejectLink closes a link that did not become a session, and says why: on the
// control stream if that is one, else as an answer to what came in its place.
func (s *Session) rejectLink(c *control, why error) {
	code, linger := wire.BadRequest, lingerTime
	var closed *ClosedError
	if errors.As(why, &closed) {
		code, linger = closed.Code, 0
	}
	msg := why.Error()
	if s.l.transport == TransportQUIC {
		linger = 0 // closing the connection says it all
	}
	if c != nil && linger > 0 {
		bye := wire.AppendGoodbye(nil, wire.Goodbye{Code: code, Message: msg})
		if !c.ok {
			bye = wire.AppendAnswer(nil, wire.Answer{Code: code, Message: msg})
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_ = c.raw.SetWriteDeadline(time.Now().Add(lingerTime))
			_, _ = c.raw.Write(bye)
		}()
		select {
		case <-sent:
		case <-time.After(lingerTime):
			linger = 0
		}
	}
	s.l.close(code, msg, linger)
}

// start sets the session's loops going.
func (s *Session) start(c *control, accept bool) {
	_ = c.raw.SetReadDeadline(time.Time{})
	_ = c.raw.SetWriteDeadline(time.Time{})
	s.wmu.Lock()
	s.ctl = c.raw
	s.wmu.Unlock()
	if m, ok := s.l.mux.(resetCarrier); ok {
		c.src = m.attach(c.raw, s.send)
	}
	s.meter.sessionStarted()
	// One loop may end the session before the next is set going: whoever waits for them waits for all.
	s.loops.Add(1)
	defer s.loops.Done()
	s.loops.Go(func() { s.readControl(c.r) })
	if accept {
		s.loops.Go(s.acceptLoop)
	}
	s.beat.start(s.heartbeat)
}

// send queues an encoded frame and returns once it was written, or stop or the session ended.
func (s *Session) send(b []byte, stop <-chan struct{}) error {
	f := controlFrame{b: b, sent: make(chan error, 1)}
	select {
	case s.queue <- f:
		s.writeSoon()
	case <-stop:
		return errMuxGone
	case <-s.mute:
		return errMuxGone
	}
	select {
	case err := <-f.sent:
		return err
	case <-stop:
		return errMuxGone
	case <-s.mute:
		return errMuxGone
	}
}

// trySend queues an encoded frame if there is room, and does not wait.
func (s *Session) trySend(b []byte) bool {
	select {
	case s.queue <- controlFrame{b: b}:
		s.writeSoon()
		return true
	default:
		return false
	}
}

// writeSoon has what is queued written by the one writer of the control stream, which is there only while there is
// something to write. It may be stuck where the connection takes nothing, and nobody else is with it.
func (s *Session) writeSoon() {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if s.ctl != nil && !s.writing && !s.isMute() {
		s.writing = true
		s.loops.Go(s.writeControl)
	}
}

// writeControl writes until nothing is queued.
func (s *Session) writeControl() {
	for {
		select {
		case f := <-s.queue:
			_, err := s.ctl.Write(f.b)
			if f.sent != nil {
				f.sent <- err
			}
			if err != nil {
				s.muteControl() // readControl tells why
				return
			}
		default:
			if s.doneWriting() {
				return
			}
		}
	}
}

// doneWriting says that the writer goes, unless something was queued meanwhile.
func (s *Session) doneWriting() bool {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	s.writing = len(s.queue) > 0
	return !s.writing
}

// muteControl says that nothing is written any more, and lets go who waits for that.
func (s *Session) muteControl() {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if !s.isMute() {
		close(s.mute)
	}
}

func (s *Session) isMute() bool {
	select {
	case <-s.mute:
		return true
	default:
		return false
	}
}

// readControl obeys the other side's control frames until the session ends.
func (s *Session) readControl(r *bufio.Reader) {
	buf := make([]byte, 256)
	for {
		f, err := wire.ReadFrame(r, buf)
		if err == nil {
			err = s.obey(f)
		}
		var closed *ClosedError
		switch {
		case err == nil:
			continue
		case errors.Is(err, wire.ErrMalformed):
			s.fail(wire.BadRequest, "control stream: "+err.Error())
		case errors.Is(err, io.EOF) && !errors.Is(err, errMuxGone):
			s.fail(wire.BadRequest, "the control stream was closed")
		case errors.As(err, &closed):
			s.terminate(closed, 0)
		default:
			s.terminate(s.l.explain(err), 0)
		}
		if m, ok := s.l.mux.(resetCarrier); ok {
			m.detach()
		}
		return
	}
}

// obey does what one frame says.
func (s *Session) obey(f wire.Frame) error {
	switch f.Type {
	case wire.FramePing:
		p, err := wire.ParsePing(f.Payload)
		if err != nil {
			return err
		}
		s.pulse.pinged(p)
		s.trySend(wire.AppendPing(nil, wire.FramePong, p)) // who pings faster than that may miss some
	case wire.FramePong:
		p, err := wire.ParsePing(f.Payload)
		if err != nil {
			return err
		}
		if rtt, ok := s.pulse.ponged(p, time.Now()); ok {
			s.meter.roundTrip(rtt)
		}
	case wire.FrameReset:
		r, err := wire.ParseReset(f.Payload)
		if err != nil {
			return err
		}
		if m, ok := s.l.mux.(resetCarrier); ok {
			m.onReset(r)
		}
	case wire.FrameDrain:
		d, err := wire.ParseDrain(f.Payload)
		if err != nil {
			return err
		}
		s.drain(d.Delay)
	case wire.FrameQuiet:
		s.otherQuiet()
	case wire.FrameGoodbye:
		g, err := wire.ParseGoodbye(f.Payload)
		if err != nil {
			return err
		}
		return &ClosedError{Code: g.Code, Message: g.Message, Remote: true}
	case wire.FrameBundle:
		var b wire.Bundle
		var err error
		aside(func() { b, err = wire.ParseBundle(f.Payload) })
		if err != nil {
			return err
		}
		s.cfg.OnBundle(s, b)
	case wire.FrameStatus:
		var st wire.Status
		var err error
		aside(func() { st, err = wire.ParseStatus(f.Payload) })
		if err != nil {
			return err
		}
		s.cfg.OnStatus(s, st)
	case wire.FrameNetwork:
		var n wire.Network
		var err error
		aside(func() { n, err = wire.ParseNetwork(f.Payload) })
		if err != nil {
			return err
		}
		s.cfg.OnNetwork(s, n)
	case wire.FrameHello:
		return fmt.Errorf("%w: a second hello", wire.ErrMalformed)
	}
	return nil
}
