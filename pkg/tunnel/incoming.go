package tunnel

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Request is a stream that the other side wants to open. It is answered once,
// by Accept or by Refuse.
type Request struct {
	Kind   wire.Kind
	Target string
	Trace  wire.Trace // what the other side calls it in its log; zero: it did not say

	s        *Session
	raw      muxStream
	stop     func() // ends the watch for the other side's giving up
	answered atomic.Bool
}

var errAnswered = errors.New("tunnel request: answered before")

// Accept returns the stream. An error means that there is nobody to talk to any more.
func (r *Request) Accept() (*Stream, error) {
	if !r.take() {
		return nil, errAnswered
	}
	if err := r.answer(wire.Answer{}); err != nil {
		r.s.in.streams.release()
		r.raw.reset(wire.Canceled)
		return nil, fmt.Errorf("accept %s stream to %q: %w", r.Kind, r.Target, r.s.streamErr(err))
	}
	r.s.in.opened.Add(1)
	r.s.meter.served(r.Kind, wire.OK)
	return &Stream{raw: r.raw, s: r.s, slot: &r.s.in.streams}, nil
}

// Refuse tells the other side why not.
func (r *Request) Refuse(code wire.Code, msg string) error {
	if !r.take() {
		return errAnswered
	}
	if code == wire.OK {
		code = wire.Internal
	}
	r.s.in.streams.release() // before the answer: who has it may open the next one
	err := r.answer(wire.Answer{Code: code, Message: msg})
	r.raw.close()
	r.s.meter.served(r.Kind, code)
	if err != nil {
		return r.s.streamErr(err)
	}
	return nil
}

// take lets the first answer through.
func (r *Request) take() bool {
	if r.answered.Swap(true) {
		return false
	}
	r.stop()
	r.s.in.pending.release()
	return true
}

func (r *Request) answer(a wire.Answer) error {
	_ = r.raw.SetWriteDeadline(time.Now().Add(r.s.cfg.OpenTimeout))
	_, err := r.raw.Write(wire.AppendAnswer(nil, a))
	_ = r.raw.SetWriteDeadline(time.Time{})
	return err
}

// acceptLoop takes the streams that the other side opens.
func (s *Session) acceptLoop() {
	for {
		raw, err := s.l.accept(s.ctx)
		if errors.Is(err, errFlood) {
			s.fail(wire.Overloaded, errFlood.Error())
		}
		if err != nil {
			return // readControl tells why
		}
		s.handlers.Go(func() { s.serve(raw) })
	}
}

// serve finds out what a stream is for and has it answered.
func (s *Session) serve(raw muxStream) {
	if !s.in.pending.acquire() {
		s.refuse(raw, wire.Overloaded, fmt.Sprintf("%d opens are waiting for an answer", s.cfg.MaxPending))
		return
	}
	if !s.in.streams.acquire() {
		s.in.pending.release()
		s.refuse(raw, wire.Overloaded, fmt.Sprintf("%d streams are open", s.cfg.MaxStreams))
		return
	}
	if s.in.streams.n.Load() == 1 {
		s.watch()
	}
	_ = raw.SetReadDeadline(time.Now().Add(s.cfg.HandshakeTimeout))
	pre, err := wire.ReadPreamble(raw)
	_ = raw.SetReadDeadline(time.Time{})
	if err == nil && pre.Kind == wire.KindControl {
		err = fmt.Errorf("%w: a second control stream", wire.ErrMalformed)
	}
	if err != nil {
		s.in.streams.release()
		s.in.pending.release()
		raw.reset(wire.BadRequest)
		if errors.Is(err, wire.ErrMalformed) {
			s.fail(wire.BadRequest, err.Error())
		}
		return
	}
	r := &Request{Kind: pre.Kind, Target: pre.Target, Trace: pre.Trace, s: s, raw: raw}
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	r.stop = raw.onAbort(func() { cancel(&RefusedError{Code: wire.Canceled, Message: "given up by the other side"}) })
	s.cfg.Handler(ctx, s, r)
	if !r.answered.Load() {
		s.log.Error("a stream was left unanswered by its handler; refused as internal error", "kind", r.Kind.String(), "target", r.Target, "dial", r.Trace.String())
		_ = r.Refuse(wire.Internal, "")
	}
}

// refuse answers a stream without having heard what it is for.
func (s *Session) refuse(raw muxStream, code wire.Code, msg string) {
	_ = raw.SetWriteDeadline(time.Now().Add(s.cfg.HandshakeTimeout))
	_, _ = raw.Write(wire.AppendAnswer(nil, wire.Answer{Code: code, Message: msg}))
	raw.close()
	s.meter.served(0, code)
}
