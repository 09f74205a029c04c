// Package tracing names the dials of API servers by W3C trace contexts, and makes OpenTelemetry spans of them where a
// collector is configured.
//
// A nil *Tracer makes names and nothing else, so that those who trace need not ask whether somebody looks. Nothing
// global of OpenTelemetry is set or used. A collector that is away, slow or gone costs spans and nothing else: nobody
// waits for it but Run.
package tracing

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	oteltrace "go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/credentials"

	"github.com/mooring-edge/mooring/internal/version"
)

const (
	// maxAttribute bounds an attribute in bytes; what an API server asks for comes from outside.
	maxAttribute = 512
	// exportTimeout bounds the sending of one batch, with what is tried again in it.
	exportTimeout = 30 * time.Second
	// retryFirst is the pause before the first repetition; it doubles, up to retryMost.
	retryFirst, retryMost = time.Second, 10 * time.Second
	// flushTimeout bounds the sending of what is left at the end.
	flushTimeout = 3 * time.Second
)

// Config is what a Tracer is made of.
type Config struct {
	// Endpoint is the collector's OTLP/gRPC endpoint: http://host:port, or https://host:port for TLS. The usual
	// environment variables (OTEL_EXPORTER_OTLP_HEADERS, ..._CERTIFICATE) add to it.
	Endpoint string
	// SampleRatio is the share of dials that spans are made of, from 0 to 1. A caller that says that it records nothing is
	// followed; one that records is subject to the ratio.
	SampleRatio float64
	// Roots verify an https endpoint. nil: the system's.
	Roots *x509.CertPool
	// Registerer takes the metrics; nil leaves them out.
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Tracer makes spans. Safe for concurrent use, also if it is nil.
type Tracer struct {
	cfg      Config
	provider *sdktrace.TracerProvider
	tracer   oteltrace.Tracer
	queue    *queue
}

// New makes a Tracer; it starts nothing and connects to nobody. Spans wait for Run, within bounds.
func New(cfg Config) (*Tracer, error) {
	if u, err := url.Parse(cfg.Endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("tracing endpoint %q: want http://host:port or https://host:port", cfg.Endpoint)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Tracer{cfg: cfg, queue: newQueue(cfg.Registerer, cfg.Logger.With("endpoint", cfg.Endpoint))}
	ratio := sdktrace.TraceIDRatioBased(cfg.SampleRatio)
	limits := sdktrace.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxAttribute
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sdktrace.ParentBased(ratio, sdktrace.WithRemoteParentSampled(ratio))),
		sdktrace.WithRawSpanLimits(limits),
		sdktrace.WithResource(describe()),
		sdktrace.WithSpanProcessor(t.queue),
	)
	t.tracer = t.provider.Tracer("github.com/mooring-edge/mooring", oteltrace.WithInstrumentationVersion(version.Version))
	return t, nil
}

// describe says whose spans they are.
func describe() *resource.Resource {
	attrs := []attribute.KeyValue{attribute.String("service.name", "mooring-broker"), attribute.String("service.version", version.Version)}
	if host, err := os.Hostname(); err == nil {
		attrs = append(attrs, attribute.String("host.name", host))
	}
	return resource.NewSchemaless(attrs...)
}

// Run sends spans to the collector until ctx ends, and then, for a few seconds, what is left. It may be called once.
// That the collector can't be reached is no error.
func (t *Tracer) Run(ctx context.Context) error {
	if t == nil {
		<-ctx.Done()
		return nil
	}
	options := []otlptracegrpc.Option{
		otlptracegrpc.WithEndpointURL(t.cfg.Endpoint),
		otlptracegrpc.WithTimeout(exportTimeout),
		otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{
			Enabled: true, InitialInterval: retryFirst, MaxInterval: retryMost, MaxElapsedTime: exportTimeout,
		}),
	}
	if t.cfg.Roots != nil {
		options = append(options, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(&tls.Config{RootCAs: t.cfg.Roots, MinVersion: tls.VersionTLS12})))
	}
	exporter, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return fmt.Errorf("tracing to %s: %w", t.cfg.Endpoint, err)
	}
	t.cfg.Logger.Info("spans of egress dials go to the collector", "endpoint", t.cfg.Endpoint, "sampleRatio", t.cfg.SampleRatio)
	t.queue.run(ctx, exporter)
	return nil
}

// printable makes a text fit for a span: one that is not UTF-8 would cost the whole batch.
func printable(s string) string {
	if len(s) > maxAttribute {
		s = s[:maxAttribute]
	}
	return strings.ToValidUTF8(s, "?")
}
