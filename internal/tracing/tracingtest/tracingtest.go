// Package tracingtest is a collector of spans for tests: a real OTLP/gRPC server that keeps what it is sent.
package tracingtest

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// Collector keeps spans.
type Collector struct {
	collector.UnimplementedTraceServiceServer

	addr string

	mu      sync.Mutex
	spans   []*otlp.Span  // guarded by mu
	service string        // guarded by mu; of the last export
	more    chan struct{} // closed and made anew with each export; guarded by mu
}

// Start starts a collector on loopback. It ends with the test.
func Start(t testing.TB, options ...grpc.ServerOption) *Collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Collector{addr: l.Addr().String(), more: make(chan struct{})}
	srv := grpc.NewServer(options...)
	collector.RegisterTraceServiceServer(srv, c)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Errorf("collector: %v", err)
		}
	})
	return c
}

// Addr is host:port.
func (c *Collector) Addr() string { return c.addr }

// Export implements the OTLP service.
func (c *Collector) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range r.ResourceSpans {
		c.service = attribute(rs.Resource.GetAttributes(), "service.name")
		for _, ss := range rs.ScopeSpans {
			c.spans = append(c.spans, ss.Spans...)
		}
	}
	close(c.more)
	c.more = make(chan struct{})
	return &collector.ExportTraceServiceResponse{}, nil
}

// Service is who sent spans last, by service.name.
func (c *Collector) Service() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.service
}

// Spans are those that came until now.
func (c *Collector) Spans() []*otlp.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*otlp.Span(nil), c.spans...)
}

// Await returns the first span that fits, when it has come.
func (c *Collector) Await(t testing.TB, what string, fits func(*otlp.Span) bool) *otlp.Span {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		c.mu.Lock()
		spans, more := c.spans, c.more
		c.mu.Unlock()
		for _, s := range spans {
			if fits(s) {
				return s
			}
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("no span came that is %s; there are %v", what, spans)
		}
	}
}

// Attribute is what a span says under a key, if that is a string.
func Attribute(s *otlp.Span, key string) string { return attribute(s.Attributes, key) }

func attribute(all []*common.KeyValue, key string) string {
	for _, kv := range all {
		if kv.Key == key {
			return kv.Value.GetStringValue()
		}
	}
	return ""
}
