package tracing

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	oteltrace "go.opentelemetry.io/otel/trace"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// Span is one piece of work, which has a name that others can be told. It is for one goroutine at a time.
type Span struct {
	trace  wire.Trace
	tracer *Tracer
	span   oteltrace.Span // nil if tracing is off
}

// Start begins a span: a part of parent if that is valid, else of a trace of its own. Whoever starts one ends it.
func (t *Tracer) Start(parent wire.Trace, name string) *Span {
	if t == nil {
		trace := wire.NewTrace()
		if parent.Valid() {
			trace.ID, trace.Flags = parent.ID, parent.Flags
		}
		return &Span{trace: trace}
	}
	ctx := context.Background()
	if parent.Valid() {
		ctx = oteltrace.ContextWithRemoteSpanContext(ctx, oteltrace.NewSpanContext(oteltrace.SpanContextConfig{
			TraceID: parent.ID, SpanID: parent.Span, TraceFlags: oteltrace.TraceFlags(parent.Flags), Remote: true,
		}))
	}
	return t.start(ctx, name, oteltrace.SpanKindServer)
}

// Child begins a part of s: what is asked of somebody else.
func (s *Span) Child(name string) *Span {
	if s.span == nil {
		return &Span{trace: s.trace}
	}
	return s.tracer.start(oteltrace.ContextWithSpan(context.Background(), s.span), name, oteltrace.SpanKindClient)
}

func (t *Tracer) start(ctx context.Context, name string, kind oteltrace.SpanKind) *Span {
	_, span := t.tracer.Start(ctx, name, oteltrace.WithSpanKind(kind))
	sc := span.SpanContext()
	return &Span{
		trace: wire.Trace{ID: sc.TraceID(), Span: sc.SpanID(), Flags: byte(sc.TraceFlags())}, tracer: t, span: span,
	}
}

// Trace is the name of s for others.
func (s *Span) Trace() wire.Trace { return s.trace }

// Set says something of s. Values are cut to 512 bytes.
func (s *Span) Set(key, value string) {
	if s.span != nil {
		s.span.SetAttributes(attribute.String(key, printable(value)))
	}
}

// End ends s. An err that is not nil says that it failed.
func (s *Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		s.span.SetStatus(codes.Error, printable(err.Error()))
	}
	s.span.End()
}
