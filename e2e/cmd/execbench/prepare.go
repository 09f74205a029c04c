package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

const podManifest = `apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: mooring.test/busybox:1
    imagePullPolicy: Never
    command: [sleep, "100000"]
`

// prepare raises a platform with one tenant and two sites, of which one's agent is on TCP and the other's on QUIC, a pod on each
// node with a file of o.bytes bytes, and an API server for each way that is wanted.
func prepare(ctx context.Context, env *harness.Env, o options, say func(string, ...any)) ([]*way, error) {
	p, err := env.StartPlatform(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.StartBroker(ctx); err != nil {
		return nil, err
	}
	t, err := p.NewTenant(ctx, tenantName)
	if err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{t.Admit, t.Start, t.SetKubeletConfig} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	sites := map[string]*harness.Site{}
	for _, transport := range []string{"tcp", "quic"} {
		say("a node over %s", transport)
		if sites[transport], err = join(ctx, env, p, t, transport); err != nil {
			return nil, err
		}
	}
	mooring := func(mode, transport string) func() (*harness.Way, error) {
		return func() (*harness.Way, error) { return t.MooringWay(ctx, mode, transport) }
	}
	// One API server calls the broker itself, for the nodes of both transports.
	connect := sync.OnceValues(mooring(harness.ModeConnect, "tcp"))
	var ways []*way
	for _, w := range []struct {
		name, transport string
		start           func() (*harness.Way, error)
	}{
		{direct, "TCP", func() (*harness.Way, error) { return t.DirectWay(ctx, sites["tcp"]) }},
		{"konnectivity, HTTPConnect/mTLS", "gRPC", func() (*harness.Way, error) { return t.KonnectivityWay(ctx, sites["tcp"], "http-connect") }},
		{"konnectivity, gRPC/UDS", "gRPC", func() (*harness.Way, error) { return t.KonnectivityWay(ctx, sites["tcp"], "grpc") }},
		{"Mooring, HTTPConnect/mTLS", "TLS+yamux", connect},
		{"Mooring, sidecar gRPC/UDS", "TLS+yamux", mooring(harness.ModeSidecarGRPC, "tcp")},
		{"Mooring, sidecar CONNECT/UDS", "TLS+yamux", mooring(harness.ModeSidecarHTTP, "tcp")},
		{"Mooring, HTTPConnect/mTLS", "QUIC", connect},
		{"Mooring, sidecar gRPC/UDS", "QUIC", mooring(harness.ModeSidecarGRPC, "quic")},
		{"Mooring, sidecar CONNECT/UDS", "QUIC", mooring(harness.ModeSidecarHTTP, "quic")},
	} {
		if !o.wanted(w.name, w.transport) {
			continue
		}
		say("an API server: %s over %s", w.name, w.transport)
		got, err := w.start()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.name, err)
		}
		ways = append(ways, &way{Name: w.name, Transport: w.transport, Way: got})
	}
	if len(o.only) > 0 && len(ways) == 1 {
		return nil, fmt.Errorf("--only %q: no way has that in its name", o.only)
	}
	for _, w := range ways {
		if _, err := env.Wait(ctx, w.Name+" over "+w.Transport, time.Minute, func(ctx context.Context) error {
			_, err := w.down(ctx, o.bytes) // which makes the pod's file
			return err
		}); err != nil {
			return nil, err
		}
	}
	return ways, nil
}

// join makes a site with a node that is Ready and has its pod.
func join(ctx context.Context, env *harness.Env, p *harness.Platform, t *harness.Tenant, transport string) (*harness.Site, error) {
	name := nodeOf(transport)
	site, err := p.AddSite("site-" + transport)
	if err != nil {
		return nil, err
	}
	box, err := site.NewBox(name)
	if err != nil {
		return nil, err
	}
	if err := box.ConfigureAgent(transport); err != nil {
		return nil, err
	}
	if err := box.PowerOn(ctx); err != nil {
		return nil, err
	}
	bundle, err := t.Token(ctx)
	if err != nil {
		return nil, err
	}
	if err := box.Hand(bundle); err != nil {
		return nil, err
	}
	if err := box.StartAgent(); err != nil {
		return nil, err
	}
	if _, err := env.Wait(ctx, name+" to be Ready", 2*time.Minute, func(ctx context.Context) error { return t.NodeReady(ctx, name) }); err != nil {
		return nil, err
	}
	pod := podName + "-" + name
	if err := t.Apply(ctx, fmt.Sprintf(podManifest, pod, name)); err != nil {
		return nil, err
	}
	_, err = env.Wait(ctx, pod, 2*time.Minute, func(ctx context.Context) error { return t.PodRunning(ctx, pod) })
	return site, err
}
