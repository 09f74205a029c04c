package tunnel

import (
	"context"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

type traceKey struct{}

// WithTrace has Session.Open tell the other side that the stream is a part of t, by
// which both ends can name it in their logs. It gets it as Request.Trace.
func WithTrace(ctx context.Context, t wire.Trace) context.Context {
	return context.WithValue(ctx, traceKey{}, t)
}

// TraceOf returns what WithTrace put in; the zero value if there is none.
func TraceOf(ctx context.Context) wire.Trace {
	t, _ := ctx.Value(traceKey{}).(wire.Trace)
	return t
}
