package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/join"
	"github.com/mooring-edge/mooring/pkg/join/kubelet"
)

// Run does the agent's work until ctx ends. The kubelet runs on.
func (a *Agent) Run(ctx context.Context) error {
	unlock, err := a.lock("run")
	if err != nil {
		return err
	}
	defer unlock()
	local, err := a.listen(true)
	if err != nil {
		return err
	}
	defer local.close()

	a.console.path = a.cfg.Node.Console // a person who joins by hand reads the log
	g := newGroup(ctx)
	g.start(a.health.Run)
	g.start(a.watchClock)
	g.start(a.watchStorage)
	g.start(a.keepNetwork)
	g.start(func(ctx context.Context) error { return a.serveAPI(ctx, local.api) })
	g.start(func(ctx context.Context) error { return a.serveAdmin(ctx, local.admin) })
	if local.health != nil {
		g.start(func(ctx context.Context) error { return a.serveHealth(ctx, local.health) })
	}
	g.start(func(ctx context.Context) error { return a.work(ctx, g) })
	return g.wait(ctx)
}

// Join enrols and bootstraps, then returns; the kubelet's files are there, but it is not started.
func (a *Agent) Join(ctx context.Context) (*join.Identity, error) {
	unlock, err := a.lock("join")
	if err != nil {
		return nil, err
	}
	defer unlock()
	local, err := a.listen(false)
	if err != nil {
		return nil, err
	}
	defer local.close()

	g := newGroup(ctx)
	g.start(func(ctx context.Context) error { return a.serveAPI(ctx, local.api) })
	var id *join.Identity
	g.start(func(ctx context.Context) error {
		var err error
		if id, err = a.joiner.Enrol(ctx); err != nil {
			return err
		}
		a.enrolled(id)
		g.start(a.takeBundles)
		g.start(a.runTunnel)
		rec, err := a.joiner.Bootstrap(ctx, id)
		if err != nil {
			return err
		}
		if _, err = a.render(rec); err != nil {
			return err
		}
		return errJoined
	})
	switch err := g.wait(ctx); {
	case errors.Is(err, errJoined):
		return id, nil
	case err != nil:
		return nil, err
	}
	return nil, ctx.Err()
}

// errJoined ends the group of Join when all is done.
var errJoined = errors.New("joined")

// lock prepares the state directory and takes it for this process.
func (a *Agent) lock(command string) (func(), error) {
	if err := join.ProbeStateDir(a.cfg.StateDir, a.writeFile); err != nil {
		a.storageSays(err)
		// An enrolled box goes on without a disk that it can write to: better a node without
		// renewals than no node.
		if _, idErr := a.joiner.LoadIdentity(); idErr != nil {
			return nil, err
		}
		a.logger.Error("going on without: nothing new can be kept", "err", err)
	}
	l, err := AcquireLock(a.cfg.StateDir, command)
	if err != nil {
		return nil, err
	}
	return func() { _ = l.Release() }, nil
}

// listeners are the agent's local sockets.
type listeners struct{ api, admin, health net.Listener }

func (l listeners) close() {
	for _, x := range []net.Listener{l.api, l.admin, l.health} {
		if x != nil {
			x.Close()
		}
	}
}

// listen opens the sockets, so that a port in use is found out before anything is begun.
func (a *Agent) listen(all bool) (l listeners, err error) {
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.api, err = net.Listen("tcp", a.cfg.APIAddress); err != nil {
		return l, fmt.Errorf("local API endpoint: %w; free the port, or set apiAddress", err)
	}
	if !all {
		return l, nil
	}
	if l.admin, err = listenUnix(a.cfg.Socket); err != nil {
		return l, err
	}
	if a.cfg.HealthAddress != "" {
		if l.health, err = net.Listen("tcp", a.cfg.HealthAddress); err != nil {
			return l, fmt.Errorf("health endpoint: %w; free the port, or set healthAddress", err)
		}
	}
	return l, nil
}

func (a *Agent) serveAPI(ctx context.Context, l net.Listener) error {
	return (&apiEndpoint{a.client, a.logger, a.metrics, nil}).serve(ctx, l)
}

func (a *Agent) runTunnel(ctx context.Context) error {
	a.tunnelRuns.Store(true)
	if a.session.Load() == nil {
		a.health.Set(condTunnel, health.False, "Dialling", "connecting to "+a.endpoint())
	}
	return a.client.Run(ctx)
}

// work brings the node up, step by step, then keeps its certificates in order.
func (a *Agent) work(ctx context.Context, g *group) error {
	a.warnOfOtherTenant()
	runner := &runner{agent: a, group: g}
	// From disk alone first: neither broker nor API server need be there for a kubelet that has its files.
	if id, err := a.joiner.LoadIdentity(); err == nil {
		a.enrolled(id)
		if rec, err := a.joiner.Record(id); err == nil {
			if err := runner.run(rec); err != nil {
				return err
			}
		}
	}
	id, err := a.joiner.Enrol(ctx)
	if err != nil {
		return err
	}
	a.enrolled(id)
	g.start(a.keepCertificate)
	g.start(a.takeBundles)
	g.start(a.runTunnel)
	g.start(a.readNode)
	a.lookAgain()
	for {
		rec, err := a.joiner.Bootstrap(ctx, a.identity.Load())
		if err != nil {
			return err
		}
		if err := runner.run(rec); err != nil {
			return err
		}
		a.pauseKubelet(ctx)
		if ctx.Err() != nil {
			return nil
		}
	}
}

// pauseKubelet returns when the kubelet's certificate should be looked at again.
func (a *Agent) pauseKubelet(ctx context.Context) {
	t := time.NewTimer(maintainInterval)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-a.kubeletWoke:
	}
}

// wakeKubelet has the kubelet's certificate looked at now.
func (a *Agent) wakeKubelet() {
	select {
	case a.kubeletWoke <- struct{}{}:
	default:
	}
}

// permitKubelet says why the kubelet is not to be started for now, or nil. A kubelet whose certificate has
// lapsed would end, and be started, again and again. One that has never run is spared a clock by which its
// certificates are of the future; one that has is started whatever the clock: its pods are wanted.
func (a *Agent) permitKubelet() error {
	id := a.identity.Load()
	if id == nil {
		return errors.New("the node is not enrolled")
	}
	if _, err := a.joiner.Ready(id); err != nil {
		a.wakeKubelet() // the sooner it gets a new one
		return err
	}
	paths := a.joiner.Paths()
	if err := a.clockBehind(); err != nil && !exists(paths.Process) && !exists(paths.Applied) {
		return err
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// warnOfOtherTenant says what happens to a join file that was put on a box that is enrolled elsewhere:
// nothing.
func (a *Agent) warnOfOtherTenant() {
	id, err := a.joiner.LoadIdentity()
	if err != nil {
		return
	}
	b, err := config.LoadJoinBundle(a.cfg.JoinFile)
	if err == nil && b.Tenant != "" && b.Tenant != id.Tenant {
		a.logger.Warn("the join file is for another tenant and is not used: this box is enrolled already; `edge-agent reset` frees it",
			"tenant", id.Tenant, "node", id.Node, "other_tenant", b.Tenant, "file", a.cfg.JoinFile)
	}
}

// render writes the kubelet's files.
func (a *Agent) render(rec *join.Record) (*kubelet.Rendered, error) {
	r, err := a.joiner.Render(rec)
	if err != nil {
		return nil, err
	}
	for _, w := range r.Warnings {
		a.logger.Warn("KubeletConfiguration: "+w, "hint", "the kubelet decides whether it knows it")
	}
	if _, err := r.Write(); err != nil {
		return nil, err
	}
	a.kubeletAt.Store(&r.DialAddress)
	return r, nil
}
