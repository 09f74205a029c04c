package tracing

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"golang.org/x/time/rate"
)

const (
	// maxQueue is how many spans wait at most, some 2 KB each; one more is dropped.
	maxQueue = 2048
	// maxBatch is how many are sent at once.
	maxBatch = 512
	// batchDelay is how long the first of a batch waits for others.
	batchDelay = 2 * time.Second
	// complaintInterval is the least time between two lines in the log.
	complaintInterval = time.Minute
)

// errTooSlow is what is complained of where nothing failed.
var errTooSlow = errors.New("spans come faster than the collector takes them")

// queue takes the spans that ended and has run send them. OpenTelemetry's own batcher does the same, but tells of its
// troubles by a global handler, and of what it dropped not at all.
type queue struct {
	spans  chan sdktrace.ReadOnlySpan
	log    *slog.Logger
	result *prometheus.CounterVec

	dropped   prometheus.Counter
	overflow  atomic.Int64 // dropped and not yet complained of
	complaint rate.Sometimes
}

func newQueue(reg prometheus.Registerer, log *slog.Logger) *queue {
	result := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "mooring_trace_spans_total",
		Help: "Spans by what became of them: sent, failed (the collector did not take them), dropped (too many waited for it).",
	}, []string{"result"})
	return &queue{
		spans: make(chan sdktrace.ReadOnlySpan, maxQueue), log: log, result: result, dropped: result.WithLabelValues("dropped"),
		complaint: rate.Sometimes{First: 1, Interval: complaintInterval},
	}
}

// OnStart implements sdktrace.SpanProcessor.
func (q *queue) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd implements sdktrace.SpanProcessor. It never waits.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	select {
	case q.spans <- s:
	default:
		q.dropped.Inc()
		q.overflow.Add(1)
	}
}

// Shutdown implements sdktrace.SpanProcessor. It does nothing: run ends by its context.
func (q *queue) Shutdown(context.Context) error { return nil }

// ForceFlush implements sdktrace.SpanProcessor; nobody calls it.
func (q *queue) ForceFlush(context.Context) error { return nil }

// run sends spans until ctx ends, then for up to flushTimeout what is left, and shuts the exporter down.
func (q *queue) run(ctx context.Context, exporter sdktrace.SpanExporter) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(flushTimeout, cancel) })
	defer stop()
	for ctx.Err() == nil || len(q.spans) > 0 {
		q.send(late, exporter, q.next(ctx))
	}
	if err := exporter.Shutdown(late); err != nil && late.Err() == nil {
		q.log.Warn("the connection to the collector of spans did not close cleanly", "err", err)
	}
}

// next is the next batch. It returns with what there is, also if that is nothing, when ctx ends.
func (q *queue) next(ctx context.Context) []sdktrace.ReadOnlySpan {
	var batch []sdktrace.ReadOnlySpan
	var full <-chan time.Time // the first of the batch starts it
	for len(batch) < maxBatch {
		select {
		case s := <-q.spans:
			if batch = append(batch, s); full == nil {
				full = time.After(batchDelay)
			}
		case <-full:
			return batch
		case <-ctx.Done():
			select {
			case s := <-q.spans:
				batch = append(batch, s)
			default:
				return batch
			}
		}
	}
	return batch
}

// send gives a batch to the collector. What it does not take is lost.
func (q *queue) send(ctx context.Context, exporter sdktrace.SpanExporter, batch []sdktrace.ReadOnlySpan) {
	if len(batch) == 0 {
		return
	}
	err := ctx.Err()
	if err == nil {
		err = exporter.ExportSpans(ctx, batch)
	}
	failed := 0
	if err == nil {
		q.result.WithLabelValues("sent").Add(float64(len(batch)))
		err = errTooSlow
	} else {
		failed = len(batch)
		q.result.WithLabelValues("failed").Add(float64(failed))
	}
	if lost := failed + int(q.overflow.Load()); lost > 0 {
		q.complaint.Do(func() {
			q.overflow.Store(0)
			q.log.Warn("spans are lost: their collector does not take them; dials go on. mooring_trace_spans_total counts them", "spans", lost, "err", err)
		})
	}
}
