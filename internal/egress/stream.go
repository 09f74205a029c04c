package egress

import (
	"context"
	"errors"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// ServeStream answers a stream by which a sidecar asks for a connection, as if its API server had sent a CONNECT request with
// the certificate of the sidecar's session: the same bounds, metrics, audit lines and names. It is a tunnel.Handler, for sessions whose
// peer was verified.
func (s *Server) ServeStream(ctx context.Context, session *tunnel.Session, r *tunnel.Request) {
	if r.Kind != wire.KindDial {
		_ = r.Refuse(wire.BadRequest, "an API server may ask for connections to its nodes only")
		return
	}
	defer s.open.Begin()()
	v := s.decideStream(ctx, session, r)
	if v.err != nil {
		_ = r.Refuse(v.code, reason(v.err))
		return
	}
	stream, err := r.Accept()
	v.carry(stream, err)
}

// decideStream is decide for a stream.
func (s *Server) decideStream(ctx context.Context, session *tunnel.Session, r *tunnel.Request) verdict {
	parent := r.Trace
	if s.cfg.Tracer != nil {
		// Of the sidecar's name for the dial the id counts. It makes no spans; whether the broker does is the broker's to say.
		parent.Flags |= wire.FlagSampled
	}
	return s.decide(ctx, s.identify(session.ConnectionState(), session.RemoteAddr().String()), r.Target, parent)
}

// reason is what the other side of a tunnel is told of a refusal beside its code, whose text it knows.
func reason(err error) string {
	var refused *tunnel.RefusedError
	if errors.As(err, &refused) && refused.Message != "" {
		return refused.Message
	}
	return err.Error()
}
