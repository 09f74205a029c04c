package agent

import (
	"context"
	"sync"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/join"
	"github.com/mooring-edge/mooring/pkg/join/kubelet"
)

// runner has the kubelet run with what was rendered last.
type runner struct {
	agent *Agent
	group *group

	hash string // of what the running one was started with
	stop func() // ends the watching (not the kubelet) and waits for that
}

// run renders the files and sees to it that the kubelet runs with them. With the same files it does
// nothing, so it may be called again and again.
func (r *runner) run(rec *join.Record) error {
	a := r.agent
	rendered, err := a.render(rec)
	if err != nil {
		// An operator's overlay that does not fit, or a full disk: the tunnel is of use all the same.
		a.health.Set(condBootstrap, health.False, "FilesFailed", err.Error())
		a.logger.Error("the kubelet's files can't be made", "err", err)
		return nil
	}
	if _, err := a.joiner.Ready(a.identity.Load()); err != nil {
		a.health.Set(condBootstrap, health.False, "CertificateNeeded", err.Error())
	} else {
		a.health.Set(condBootstrap, health.True, "FilesReady", "the kubelet has its files")
	}
	if rendered.Hash() == r.hash {
		return nil
	}
	if r.stop != nil {
		r.stop()
	}
	r.hash = rendered.Hash()
	run := a.kubeletRunner(rendered)
	if run == nil {
		a.kubeletState(kubelet.State{Running: true, Reason: "NotManaged", Message: "kubelet left to others (kubelet.mode: none)"})
		return nil
	}
	ctx, cancel := context.WithCancel(r.group.ctx)
	var done sync.WaitGroup
	done.Add(1)
	r.group.start(func(context.Context) error {
		defer done.Done()
		return run(ctx)
	})
	r.stop = func() { cancel(); done.Wait() }
	return nil
}

// kubeletRunner is how the configuration says that the kubelet is run; nil for not at all.
func (a *Agent) kubeletRunner(r *kubelet.Rendered) func(context.Context) error {
	switch kubeletMode(a.cfg) {
	case "systemd":
		return a.systemd(r.Hash()).Run
	case "child":
		return a.child(r.Args, r.Hash()).Run
	}
	return nil
}

func (a *Agent) systemd(hash string) *kubelet.Systemd {
	return kubelet.NewSystemd(kubelet.SystemdConfig{
		Unit: a.cfg.Kubelet.Unit, Hash: hash, Paths: a.joiner.Paths(), Permit: a.permitKubelet, OnState: a.kubeletState, Logger: a.logger,
	})
}

func (a *Agent) child(args []string, hash string) *kubelet.Child {
	return kubelet.NewChild(kubelet.ChildConfig{
		Program: a.cfg.Kubelet.Path, Args: args, Hash: hash, Paths: a.joiner.Paths(), Permit: a.permitKubelet, OnState: a.kubeletState, Logger: a.logger,
	})
}

// kubeletMode resolves "auto".
func kubeletMode(cfg *config.Agent) string {
	if cfg.Kubelet.Mode != "auto" {
		return cfg.Kubelet.Mode
	}
	if kubelet.UnderSystemd() {
		return "systemd"
	}
	return "child"
}

func (a *Agent) kubeletState(s kubelet.State) {
	a.kubelet.Store(&s)
	status := health.False
	if s.Running {
		status = health.True
	}
	a.health.Set(condKubelet, status, s.Reason, s.Message)
}
