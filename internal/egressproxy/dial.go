package egressproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/mooring-edge/mooring/internal/httpconnect"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// remote is a connection to a node: a stream, which can be ended abnormally, waited for without a buffer, and passed messages by who reads them.
type remote interface {
	net.Conn
	CloseWrite() error
	Reset(wire.Code) error
	WaitRead() error
	Deliver(f func(p []byte) int)
	TryWrite(p []byte) bool
}

// refusal is why there is no connection.
type refusal struct {
	code wire.Code
	text string // for the person at kubectl
}

// dial asks the broker for a connection. There is an answer within dialTimeout, whatever happens. The dial has one name here, at the
// broker and at the node.
func (p *Proxy) dial(ctx context.Context, protocol, target string) (remote, *slog.Logger, *refusal) {
	started, trace := time.Now(), wire.NewTrace()
	log := p.log.With("dial", trace.String(), "target", target, "protocol", protocol)
	ctx, cancel := context.WithTimeout(tunnel.WithTrace(ctx, trace), dialTimeout)
	defer cancel()
	stream, err := p.open(ctx, target)
	code := tunnel.CodeOf(err)
	p.metrics.dialled(protocol, code, time.Since(started))
	if err != nil {
		log.Info("dial refused", "code", code.String(), "took", time.Since(started), "err", err)
		return nil, log, &refusal{code: code, text: httpconnect.Reason(explain(err), trace.String())}
	}
	log.Debug("dial accepted", "took", time.Since(started), "transport", string(stream.Session().Transport()))
	return stream, log, nil
}

func (p *Proxy) open(ctx context.Context, target string) (*tunnel.Stream, error) {
	wait, cancel := context.WithTimeout(ctx, p.cfg.sessionWait)
	defer cancel()
	if _, err := p.client.Session(wait); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		broker := p.known().broker
		if broker == "" {
			return nil, &tunnel.RefusedError{Code: wire.Unavailable, Message: "the egress proxy has no certificate to show the broker: " + p.health.Get(condCertificate).Message}
		}
		return nil, &tunnel.RefusedError{Code: wire.Unavailable, Message: fmt.Sprintf("the egress proxy has no session to the broker at %s: %s", broker, p.whyDown())}
	}
	return p.client.Open(ctx, wire.KindDial, target)
}

// explain says why a dial failed. A code of the broker's or the node's says what it is by its text.
func explain(err error) string {
	var refused *tunnel.RefusedError
	switch {
	case errors.As(err, &refused):
		return refused.Error()
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("the broker did not answer within %s", dialTimeout)
	}
	return err.Error()
}
