package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
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

// kind is a way that can be had.
type kind struct {
	name, transport string
	start           func(ctx context.Context, b *bed) (*harness.Way, error)
}

// bed is what ways are started on.
type bed struct {
	tenant  *harness.Tenant
	sites   map[string]*harness.Site
	connect func() (*harness.Way, error)
}

// kinds are all, in the table's order.
var kinds = []kind{
	{direct, "TCP", func(ctx context.Context, b *bed) (*harness.Way, error) {
		return b.tenant.DirectWay(ctx, b.sites["tcp"])
	}},
	{"konnectivity, HTTPConnect/mTLS", "gRPC", konnectivity("http-connect")},
	{"konnectivity, gRPC/UDS", "gRPC", konnectivity("grpc")},
	{"Mooring, HTTPConnect/mTLS", "TLS+yamux", callsBroker},
	{"Mooring, sidecar gRPC/UDS", "TLS+yamux", sidecar(harness.ModeSidecarGRPC, "tcp")},
	{"Mooring, sidecar CONNECT/UDS", "TLS+yamux", sidecar(harness.ModeSidecarHTTP, "tcp")},
	{"Mooring, HTTPConnect/mTLS", "QUIC", callsBroker},
	{"Mooring, sidecar gRPC/UDS", "QUIC", sidecar(harness.ModeSidecarGRPC, "quic")},
	{"Mooring, sidecar CONNECT/UDS", "QUIC", sidecar(harness.ModeSidecarHTTP, "quic")},
}

func konnectivity(mode string) func(context.Context, *bed) (*harness.Way, error) {
	return func(ctx context.Context, b *bed) (*harness.Way, error) {
		return b.tenant.KonnectivityWay(ctx, b.sites["tcp"], mode)
	}
}

func callsBroker(_ context.Context, b *bed) (*harness.Way, error) { return b.connect() }

func sidecar(mode, transport string) func(context.Context, *bed) (*harness.Way, error) {
	return func(ctx context.Context, b *bed) (*harness.Way, error) {
		return b.tenant.MooringWay(ctx, mode, transport)
	}
}

// only returns the kinds that have one of parts in their name, and the direct one: all others are ratios to it. Without parts it is all.
func only(parts []string) ([]kind, error) {
	if len(parts) == 0 {
		return kinds, nil
	}
	names := []string{}
	got := []kind{}
	for _, k := range kinds {
		name := k.name + ", " + k.transport
		names = append(names, name)
		if k.name == direct || slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(name, part) }) {
			got = append(got, k)
		}
	}
	for _, part := range parts {
		if !slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, part) }) {
			return nil, fmt.Errorf("--only %q is in no way's name; these are: %s", part, strings.Join(names, "; "))
		}
	}
	return got, nil
}

// prepare raises a platform with one tenant and two sites, of which one's agent is on TCP and the other's on QUIC, a pod on each
// node with a file of that many bytes, and an API server for each way that is wanted.
func prepare(ctx context.Context, env *harness.Env, bytes int64, wanted []kind, say func(string, ...any)) ([]*way, error) {
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
	// One API server calls the broker itself, for the nodes of both transports.
	b := &bed{tenant: t, sites: sites, connect: sync.OnceValues(func() (*harness.Way, error) { return t.MooringWay(ctx, harness.ModeConnect, "tcp") })}
	var ways []*way
	for _, w := range wanted {
		say("an API server: %s over %s", w.name, w.transport)
		got, err := w.start(ctx, b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.name, err)
		}
		ways = append(ways, &way{Name: w.name, Transport: w.transport, Way: got})
	}
	for _, w := range ways {
		if _, err := env.Wait(ctx, w.Name+" over "+w.Transport, time.Minute, func(ctx context.Context) error {
			_, err := w.down(ctx, bytes) // which makes the pod's file
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
