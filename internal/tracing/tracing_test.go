package tracing

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tracing/tracingtest"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTracer(t *testing.T, cfg Config) *Tracer {
	t.Helper()
	tr, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// run runs tr until stop is called, which returns how long the end took.
func run(t *testing.T, tr *Tracer) (stop func() time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	var took time.Duration
	stop = sync.OnceValue(func() time.Duration {
		start := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		took = time.Since(start)
		return took
	})
	t.Cleanup(func() { stop() })
	return stop
}

var caller = wire.Trace{ID: [16]byte{1, 2, 3}, Span: [8]byte{4}, Flags: wire.FlagSampled}

// Without a collector there are names all the same.
func TestNamesWithoutTracer(t *testing.T) {
	var none *Tracer
	a, b := none.Start(wire.Trace{}, "a"), none.Start(wire.Trace{}, "b")
	if !a.Trace().Valid() || a.Trace().ID == b.Trace().ID || a.Trace().Flags != 0 {
		t.Errorf("%+v and %+v", a.Trace(), b.Trace())
	}
	if c := a.Child("c"); c.Trace() != a.Trace() {
		t.Errorf("a part of %+v is %+v", a.Trace(), c.Trace())
	}
	c := none.Start(caller, "c").Trace()
	if c.ID != caller.ID || c.Flags != caller.Flags || c.Span == caller.Span || !c.Valid() {
		t.Errorf("below %+v: %+v", caller, c)
	}
	a.Set("k", "v")
	a.End(errors.New("failed"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := none.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestEndpoints(t *testing.T) {
	for _, bad := range []string{"", "collector:4317", "grpc://collector:4317", "http://", "http://[::1"} {
		if _, err := New(Config{Endpoint: bad}); err == nil || !strings.Contains(err.Error(), "want http://host:port") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Spans reach a collector over plain gRPC and over TLS, and what is left is sent at the end.
func TestSpansReachTheCollector(t *testing.T) {
	ca, err := pki.NewCA("mooring.test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.IssueBroker("b1", nil, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for scheme, c := range map[string]*tracingtest.Collector{
		"http://":  tracingtest.Start(t),
		"https://": tracingtest.Start(t, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}))),
	} {
		t.Run(scheme, func(t *testing.T) {
			cfg := Config{Endpoint: scheme + c.Addr(), SampleRatio: 1}
			if scheme == "https://" {
				cfg.Roots = ca.Pool()
			}
			tr := newTracer(t, cfg)
			stop := run(t, tr)
			parent := tr.Start(caller, "parent")
			child := parent.Child("child")
			child.Set("key", strings.Repeat("v", maxAttribute+1))
			child.End(errors.New("no \xff way"))
			parent.End(nil)
			stop() // sends them at once

			named := func(name string) *otlp.Span {
				return c.Await(t, name, func(s *otlp.Span) bool { return s.Name == name })
			}
			p, ch := named("parent"), named("child")
			trace, above := hex.EncodeToString(caller.ID[:]), hex.EncodeToString(caller.Span[:])
			if hex.EncodeToString(p.TraceId) != trace || hex.EncodeToString(p.ParentSpanId) != above || hex.EncodeToString(ch.TraceId) != trace ||
				!bytes.Equal(ch.ParentSpanId, p.SpanId) {
				t.Errorf("parent %v\nchild %v", p, ch)
			}
			if at := parent.Trace(); !bytes.Equal(p.SpanId, at.Span[:]) || at.Flags&wire.FlagSampled == 0 {
				t.Errorf("the parent's name for others is %+v", at)
			}
			if v := tracingtest.Attribute(ch, "key"); len(v) != maxAttribute {
				t.Errorf("an attribute of %d bytes", len(v))
			}
			if ch.Status.GetMessage() != "no ? way" || ch.Status.GetCode() != otlp.Status_STATUS_CODE_ERROR || p.Status.GetCode() != otlp.Status_STATUS_CODE_UNSET {
				t.Errorf("status %v, %v", ch.Status, p.Status)
			}
			if c.Service() != "mooring-broker" {
				t.Errorf("service %q", c.Service())
			}
			if got := testutil.ToFloat64(tr.queue.result.WithLabelValues("sent")); got != 2 {
				t.Errorf("%v were counted as sent", got)
			}
		})
	}
	// Who is not verified is sent nothing: the collector's CA is none of the system's.
	c := tracingtest.Start(t, grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})))
	tr := newTracer(t, Config{Endpoint: "https://" + c.Addr(), SampleRatio: 1, Roots: x509.NewCertPool()})
	tr.Start(caller, "secret").End(nil)
	run(t, tr)()
	if got := c.Spans(); len(got) != 0 {
		t.Errorf("a collector that nobody vouches for got %v", got)
	}
}

// What is recorded: a share of the dials, and never one whose caller records nothing.
func TestSampling(t *testing.T) {
	unsampled := caller
	unsampled.Flags = 0
	for _, tc := range []struct {
		ratio  float64
		parent wire.Trace
		want   bool
	}{
		{1, wire.Trace{}, true}, {0, wire.Trace{}, false},
		{1, caller, true}, {0, caller, false}, {1, unsampled, false},
	} {
		tr := newTracer(t, Config{Endpoint: "http://127.0.0.1:1", SampleRatio: tc.ratio})
		s := tr.Start(tc.parent, "dial")
		c := s.Child("open")
		if !s.Trace().Valid() || !c.Trace().Valid() || c.Trace().ID != s.Trace().ID || tc.parent.Valid() && s.Trace().ID != tc.parent.ID {
			t.Errorf("%+v: names %+v, %+v", tc, s.Trace(), c.Trace())
		}
		c.End(nil)
		s.End(nil)
		sampled := s.Trace().Flags&wire.FlagSampled != 0
		if queued := len(tr.queue.spans); sampled != tc.want || (queued == 2) != tc.want || queued != 0 && queued != 2 {
			t.Errorf("%+v: sampled %v, %d spans wait", tc, sampled, queued)
		}
	}
	tr := newTracer(t, Config{Endpoint: "http://127.0.0.1:1", SampleRatio: .25})
	for range 2000 {
		tr.Start(wire.Trace{}, "dial").End(nil)
	}
	if n := len(tr.queue.spans); n < 350 || n > 650 { // 500 is expected, with a deviation of 19
		t.Errorf("of 2000 at a ratio of 0.25, %d are recorded", n)
	}
}

// A collector that is not there, or that answers nothing, costs nobody a moment but Run, and that a few seconds at the end:
// OnEnd drops what the queue has no place for. Seen hanging with an OnEnd that waits for a place.
func TestCollectorAway(t *testing.T) {
	t.Parallel() // it mostly waits
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for name, addr := range map[string]string{"dead": dead.Addr().String(), "silent": silent.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			tr := newTracer(t, Config{Endpoint: "http://" + addr, SampleRatio: 1})
			stop := run(t, tr)
			for range 3 * maxQueue {
				tr.Start(wire.Trace{}, "dial").End(nil)
			}
			if took := stop(); took > flushTimeout+5*time.Second {
				t.Errorf("the end took %s, with a limit of %s", took, flushTimeout)
			}
			dropped, failed := testutil.ToFloat64(tr.queue.dropped), testutil.ToFloat64(tr.queue.result.WithLabelValues("failed"))
			if dropped == 0 || failed == 0 || dropped+failed != 3*maxQueue {
				t.Errorf("%v dropped, %v failed; want %d in all", dropped, failed, 3*maxQueue)
			}
		})
	}
}

// exporterFunc stands for the collector where time is the test's.
type exporterFunc func(ctx context.Context, batch []sdktrace.ReadOnlySpan) error

func (f exporterFunc) ExportSpans(ctx context.Context, batch []sdktrace.ReadOnlySpan) error {
	return f(ctx, batch)
}
func (f exporterFunc) Shutdown(context.Context) error { return nil }

// One line in the log a minute says that spans are lost, however many are. Seen failing, with 300 lines, without the limit.
func TestComplaintsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		tr := newTracer(t, Config{Endpoint: "http://127.0.0.1:1", SampleRatio: 1, Logger: slog.New(slog.NewTextHandler(&logs, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		batches := 0
		go func() {
			defer close(done)
			tr.queue.run(ctx, exporterFunc(func(context.Context, []sdktrace.ReadOnlySpan) error {
				batches++
				return errors.New("go away")
			}))
		}()
		for range 10 * 60 {
			tr.Start(wire.Trace{}, "dial").End(nil)
			time.Sleep(time.Second)
		}
		cancel()
		<-done
		lines := strings.Count(logs.String(), "spans are lost")
		if batches < 100 || lines < 9 || lines > 11 || !strings.Contains(logs.String(), "go away") {
			t.Errorf("%d lines for %d batches that failed in 10 minutes; want one a minute:\n%s", lines, batches, logs.String())
		}
	})
}

// The queue is bounded, batches too; at the end the exporter has flushTimeout for all that is left, and no more.
// Seen hanging without that limit.
func TestQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logs bytes.Buffer
		tr := newTracer(t, Config{Endpoint: "http://127.0.0.1:1", SampleRatio: 1, Logger: slog.New(slog.NewTextHandler(&logs, nil))})
		for range maxQueue + 100 {
			tr.Start(wire.Trace{}, "dial").End(nil)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		var sizes []int
		go func() {
			defer close(done)
			tr.queue.run(ctx, exporterFunc(func(ctx context.Context, batch []sdktrace.ReadOnlySpan) error {
				sizes = append(sizes, len(batch))
				if len(sizes) > 2 { // it hangs
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			}))
		}()
		synctest.Wait()
		start := time.Now()
		cancel()
		<-done
		if took := time.Since(start); took != flushTimeout {
			t.Errorf("the end took %s, want %s", took, flushTimeout)
		}
		if len(sizes) != 3 || sizes[0] != maxBatch {
			t.Errorf("batches of %v", sizes)
		}
		count := func(result string) float64 { return testutil.ToFloat64(tr.queue.result.WithLabelValues(result)) }
		if count("dropped") != 100 || count("sent") != 2*maxBatch || count("failed") != maxQueue-2*maxBatch {
			t.Errorf("%v dropped, %v sent, %v failed", count("dropped"), count("sent"), count("failed"))
		}
		if got := logs.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "spans=100") || !strings.Contains(got, "faster than") {
			t.Errorf("the log says %s; want one line of the 100 that were dropped", got)
		}
	})
}

// A span alone waits for others for batchDelay, not for the batch to be full.
func TestBatchesWaitNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTracer(t, Config{Endpoint: "http://127.0.0.1:1", SampleRatio: 1})
		ctx, cancel := context.WithCancel(t.Context())
		sent := make(chan int, 1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			tr.queue.run(ctx, exporterFunc(func(_ context.Context, batch []sdktrace.ReadOnlySpan) error {
				sent <- len(batch)
				return nil
			}))
		}()
		time.Sleep(time.Hour)
		start := time.Now()
		tr.Start(wire.Trace{}, "a").End(nil)
		tr.Start(wire.Trace{}, "b").End(nil)
		if n := <-sent; n != 2 || time.Since(start) != batchDelay {
			t.Errorf("%d spans after %s, want 2 after %s", n, time.Since(start), batchDelay)
		}
		cancel()
		<-done
	})
}
