package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/bench/internal/metrics"
	"github.com/mooring-edge/mooring/bench/internal/proc"
	"github.com/mooring-edge/mooring/bench/internal/shore"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

const (
	// settleTime is how long a broker that has just started is left alone before it is measured: its start leaves
	// garbage, which must not pass for what it needs.
	settleTime = 10 * time.Second
	// dialsTime is how long dials go on before the kill.
	dialsTime = 30 * time.Second
	// backTimeout is when nodes that did not come back are given up. The target is a minute.
	backTimeout = 5 * time.Minute
	// connectTimeout bounds the first connection of all nodes.
	connectTimeout = 15 * time.Minute
)

// measurement is one run over one transport.
type measurement struct {
	options
	shore     *shore.Shore
	ids       []*identity
	transport tunnel.Transport
	say       func(format string, args ...any)
	report    *report
}

// run measures. The broker runs neither before nor after.
func (m *measurement) run(ctx context.Context) (*report, error) {
	m.report = &report{Transport: string(m.transport), Agents: len(m.ids), Limits: m.shore.Limits()}
	if err := m.shore.Start(ctx); err != nil {
		return nil, err
	}
	if err := sleep(ctx, settleTime); err != nil {
		return nil, err
	}
	var err error
	if m.report.Memory.Before, err = m.size(ctx); err != nil {
		return nil, err
	}
	api, err := newAPIServer(ctx, m.shore)
	if err != nil {
		return nil, err
	}
	f := newFleet(m.shore.Config.Front.PublicEndpoint, m.ids, m.transport)
	defer f.stop()
	if err := m.connect(ctx, f); err != nil {
		return nil, err
	}
	if err := m.idleTime(ctx); err != nil {
		return nil, err
	}
	if err := m.dialAndKill(ctx, f, api); err != nil {
		return nil, err
	}
	if m.profile != "" {
		if err := m.takeProfiles(ctx, f); err != nil {
			return nil, err
		}
	}
	m.say("switching %d nodes off", len(f.nodes))
	f.stop()
	return m.report, m.shore.Stop()
}

// size reads what the broker takes.
func (m *measurement) size(ctx context.Context) (brokerSize, error) {
	pid := m.shore.Broker.PID()
	r, err := proc.RSS(pid)
	if err != nil {
		return brokerSize{}, err
	}
	mapped, err := proc.StatusBytes(pid, "RssFile")
	if err != nil {
		return brokerSize{}, err
	}
	files, err := proc.OpenFiles(pid)
	if err != nil {
		return brokerSize{}, err
	}
	s, err := metrics.Read(ctx, m.shore.Config.HealthAddress)
	if err != nil {
		return brokerSize{}, err
	}
	return brokerSize{
		RSS: r, Mapped: mapped, Files: files,
		HeapKept: int64(s["go_memstats_heap_idle_bytes"] - s["go_memstats_heap_released_bytes"]),
		Runtime: int64(s["go_memstats_mspan_inuse_bytes"] + s["go_memstats_mcache_inuse_bytes"] + s["go_memstats_gc_sys_bytes"] +
			s["go_memstats_other_sys_bytes"] + s["go_memstats_buck_hash_sys_bytes"]),
		HeapInUse: int64(s["go_memstats_heap_inuse_bytes"]), HeapAlloc: int64(s["go_memstats_heap_alloc_bytes"]),
		Stacks: int64(s["go_memstats_stack_inuse_bytes"]), Goroutines: int64(s["go_goroutines"]),
	}, nil
}

// connect has all nodes get a session.
func (m *measurement) connect(ctx context.Context, f *fleet) error {
	m.say("connecting %d nodes over %s", len(f.nodes), m.transport)
	stop := m.every(5*time.Second, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		m.say("%d of %d connected%s", f.up, len(f.nodes), counts(f.ends))
	})
	defer stop()
	begin := time.Now()
	f.mark()
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, fmt.Errorf("after %s", connectTimeout))
	defer cancel()
	if err := f.start(ctx, m.connecting); err != nil {
		return err
	}
	if err := f.await(ctx, allUp); err != nil {
		return err
	}
	if m.report.Connected == 0 { // not that of the profiles
		m.report.Connected = time.Since(begin).Seconds()
	}
	return nil
}

// idleTime leaves all alone, and measures what that costs.
func (m *measurement) idleTime(ctx context.Context) error {
	m.say("all idle for %s", m.idle)
	pid := m.shore.Broker.PID()
	begin := time.Now()
	broker, err := proc.CPUTime(pid)
	if err != nil {
		return err
	}
	agents, err := proc.CPUTime(os.Getpid())
	if err != nil {
		return err
	}
	if err := sleep(ctx, m.idle); err != nil {
		return err
	}
	took := time.Since(begin)
	percent := func(pid int, before time.Duration) (float64, error) {
		now, err := proc.CPUTime(pid)
		return 100 * float64(now-before) / float64(took), err
	}
	m.report.CPU.Window = took.Seconds()
	if m.report.CPU.Broker, err = percent(pid, broker); err != nil {
		return err
	}
	if m.report.CPU.Agents, err = percent(os.Getpid(), agents); err != nil {
		return err
	}
	mem := &m.report.Memory
	if mem.Idle, err = m.size(ctx); err != nil {
		return err
	}
	mem.RSSPerSession = (mem.Idle.RSS - mem.Before.RSS) / int64(len(m.ids))
	mem.Peak, err = proc.StatusBytes(pid, "VmHWM")
	return err
}

// dialAndKill has an API server dial nodes all the time, and kills the broker meanwhile.
func (m *measurement) dialAndKill(ctx context.Context, f *fleet, api *apiServer) error {
	t := &trickle{api: api, nodes: f.nodes, rate: m.dialRate}
	dialCtx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.run(dialCtx)
	}()
	defer func() {
		stop()
		<-done
	}()
	m.say("%g dials a second for %s", m.dialRate, dialsTime)
	idle := &dialLog{}
	t.phase(idle)
	if err := sleep(ctx, dialsTime); err != nil {
		return err
	}
	if !m.kill {
		stop()
		<-done
		d := idle.latencies()
		m.report.IdleDials = &d
		return nil
	}
	d := idle.latencies()
	m.report.IdleDials = &d
	return m.killBroker(ctx, f, t)
}

// killBroker kills the broker, starts it again at once and waits until all nodes are back.
func (m *measurement) killBroker(ctx context.Context, f *fleet, t *trickle) error {
	m.say("kill -9 of the broker")
	t.phase(nil) // none of those that find no broker is of interest
	begin := time.Now()
	f.mark()
	m.shore.Kill()
	if err := m.shore.Start(ctx); err != nil {
		return err
	}
	k := &killFigures{Serving: time.Since(begin).Seconds()}
	meanwhile := &dialLog{}
	t.phase(meanwhile)
	stop := m.every(5*time.Second, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		m.say("%d of %d back%s", len(f.back), len(f.nodes), counts(f.ends))
	})
	defer stop()
	backCtx, cancel := context.WithTimeoutCause(ctx, backTimeout, fmt.Errorf("after %s", backTimeout))
	defer cancel()
	if err := f.await(backCtx, allBack); err != nil {
		m.say("they are not all back: %v", err) // and the report says how many are
	}
	t.phase(nil)
	back, ends := f.returns()
	k.Back = len(back)
	if k.Back < len(f.nodes) {
		back = append(back, slices.Repeat([]time.Duration{backTimeout}, len(f.nodes)-k.Back)...)
	}
	k.P50, k.P99, k.Max = quantile(back, .5).Seconds(), quantile(back, .99).Seconds(), quantile(back, 1).Seconds()
	k.Ends, k.Dials = ends, meanwhile.latencies()
	used, err := proc.CPUTime(m.shore.Broker.PID())
	if err != nil {
		return err
	}
	k.BrokerCPU = used.Seconds()
	s, err := metrics.Read(ctx, m.shore.Config.HealthAddress)
	if err != nil {
		return err
	}
	k.Refused = refusals(s)
	m.report.Kill = k
	return nil
}

// refusals are the connections that the public port turned away, by the bound.
func refusals(s metrics.Samples) map[string]int {
	out := map[string]int{}
	for name, v := range s {
		rest, ok := strings.CutPrefix(name, `mooring_connections_refused_total{port="front",reason="`)
		if ok && v > 0 {
			out[strings.TrimSuffix(rest, `"}`)] = int(v)
		}
	}
	return out
}

// every calls f now and then until stop is called.
func (m *measurement) every(d time.Duration, f func()) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(d)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				f()
			case <-end:
				return
			}
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}
