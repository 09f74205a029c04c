package broker

import (
	"context"

	"github.com/mooring-edge/mooring/internal/tracing"
)

// startTracing has spans of dials sent to the collector, if one is configured. stop ends that, once nothing dials any more.
func (b *broker) startTracing() (stop func(), err error) {
	cfg := b.cfg.Tracing
	if cfg.Endpoint == "" {
		return func() {}, nil
	}
	b.tracer, err = tracing.New(tracing.Config{
		Endpoint: cfg.Endpoint, SampleRatio: cfg.SampleRatio, Registerer: b.metrics, Logger: b.log,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := b.tracer.Run(ctx); err != nil { // no reason for nodes to do without their broker
			b.log.Error("no spans are sent", "err", err)
		}
	}()
	return func() { cancel(); <-done }, nil
}
