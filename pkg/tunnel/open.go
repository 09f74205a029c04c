package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// errOpenTimeout is the cause of a context that Config.OpenTimeout ended.
var errOpenTimeout = errors.New("open timeout")

// Open opens a stream to target and returns it once the other side accepted
// it. A refusal, by the other side or by a limit of this one, has a
// *RefusedError in its chain, the end of the session a *ClosedError, and ctx's
// end ctx's error. Config.OpenTimeout bounds it in any case; when nothing came
// back by then, the session itself is put to the test. The trace of WithTrace goes with it.
func (s *Session) Open(ctx context.Context, kind wire.Kind, target string) (*Stream, error) {
	start := time.Now()
	st, err := s.open(ctx, kind, target)
	s.meter.opened(kind, err, time.Since(start))
	if err != nil {
		return nil, fmt.Errorf("open %s stream to %q: %w", kind, target, err)
	}
	return st, nil
}

func (s *Session) open(ctx context.Context, kind wire.Kind, target string) (*Stream, error) {
	pre, err := wire.AppendPreamble(nil, wire.Preamble{Kind: kind, Target: target, Trace: TraceOf(ctx)})
	if err != nil {
		return nil, &RefusedError{Code: wire.BadRequest, Message: err.Error()}
	}
	if kind == wire.KindControl {
		return nil, &RefusedError{Code: wire.BadRequest, Message: "the control stream is the session's own"}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if s.leaving.isShut() {
		return nil, &RefusedError{Code: wire.Draining, Message: "the session takes no more streams"}
	}
	if !s.out.pending.acquire() {
		return nil, &RefusedError{Code: wire.Overloaded, Message: fmt.Sprintf("%d opens are waiting for an answer", s.cfg.MaxPending)}
	}
	defer s.out.pending.release()
	if !s.out.streams.acquire() {
		return nil, &RefusedError{Code: wire.Overloaded, Message: fmt.Sprintf("%d streams are open", s.cfg.MaxStreams)}
	}
	if s.out.streams.n.Load() == 1 {
		s.watch()
	}
	raw, err := s.negotiate(ctx, pre)
	if err != nil {
		s.out.streams.release()
		return nil, err
	}
	s.out.opened.Add(1)
	return &Stream{raw: raw, s: s, slot: &s.out.streams}, nil
}

// negotiate opens a stream of the mux, and has it accepted.
func (s *Session) negotiate(parent context.Context, pre []byte) (muxStream, error) {
	ctx, cancel := context.WithTimeoutCause(parent, s.cfg.OpenTimeout, errOpenTimeout)
	defer cancel()
	raw, err := s.l.open(ctx)
	if err != nil {
		return nil, s.openErr(ctx, parent, err)
	}
	stop := context.AfterFunc(ctx, func() { raw.reset(wire.Canceled) })
	ans, err := exchange(raw, pre)
	if !stop() { // the stream is being reset
		return nil, s.openErr(ctx, parent, context.Cause(ctx))
	}
	switch {
	case err == nil && ans.Code == wire.OK:
		return raw, nil
	case err == nil:
		raw.close()
		return nil, &RefusedError{Code: ans.Code, Message: ans.Message}
	case errors.Is(err, wire.ErrMalformed):
		raw.reset(wire.BadRequest)
		s.fail(wire.BadRequest, err.Error())
		return nil, s.Err()
	}
	raw.reset(wire.Canceled)
	return nil, s.openErr(ctx, parent, err)
}

// exchange sends the preamble and reads the answer, which may come first: a
// side that is full does not wait for the preamble.
func exchange(raw muxStream, pre []byte) (wire.Answer, error) {
	_, werr := raw.Write(pre)
	var reset *ResetError
	if werr != nil && !errors.As(werr, &reset) {
		return wire.Answer{}, werr
	}
	return wire.ReadAnswer(raw)
}

// openErr tells why an open failed.
func (s *Session) openErr(ctx, parent context.Context, err error) error {
	var (
		reset  *ResetError
		closed *ClosedError
	)
	switch {
	case parent.Err() != nil:
		return context.Cause(parent)
	case ctx.Err() != nil:
		s.probe()
		return &RefusedError{Code: wire.DialTimeout, Message: fmt.Sprintf("the other side of the tunnel did not answer within %s", s.cfg.OpenTimeout)}
	case errors.Is(err, errStreamLimit):
		return &RefusedError{Code: wire.Overloaded, Message: errStreamLimit.Error()}
	case errors.As(err, &reset):
		code := reset.Code
		if code == wire.OK {
			code = wire.Unavailable
		}
		return &RefusedError{Code: code, Message: "the other side reset the stream before it answered"}
	case errors.As(err, &closed), errors.Is(err, errMuxGone):
		return s.streamErr(err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &RefusedError{Code: wire.Internal, Message: "the other side closed the stream before it answered"}
	}
	return s.streamErr(err)
}
