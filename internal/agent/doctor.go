package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/join"
)

// CheckResult is what came of a check.
type CheckResult string

// CheckWarn is for what the node can live with.
const (
	CheckOK      CheckResult = "ok"
	CheckWarn    CheckResult = "warn"
	CheckFailed  CheckResult = "FAIL"
	CheckSkipped CheckResult = "skip"
)

// Check is one thing that the doctor looked at.
type Check struct {
	Name   string      `json:"name"`
	Result CheckResult `json:"result"`
	Found  string      `json:"found"`
	Next   string      `json:"next,omitempty"` // what to do about it
}

// doctor looks at one box.
type doctor struct {
	cfg    *config.Agent
	socket string
	status *Status // of the running agent; nil if there is none
	joiner *join.Joiner
	id     *join.Identity // nil if not enrolled
	bundle *join.Bundle   // nil if there is none to use
	checks []Check
}

// Doctor looks for what keeps a node from working. cfgErr is why cfg could not be loaded, if so.
func Doctor(ctx context.Context, cfg *config.Agent, cfgErr error, socket string) []Check {
	d := &doctor{cfg: cfg, socket: socket}
	if cfgErr != nil {
		d.fail("configuration", oneLine(cfgErr.Error()), "put it right; `edge-agent config validate FILE` checks again")
		return d.checks
	}
	d.ok("configuration", "valid")
	d.joiner = join.New(join.Config{StateDir: cfg.StateDir, Kubelet: join.Kubelet{RootDir: cfg.Kubelet.RootDir}})
	d.status, _ = FetchStatus(ctx, socket)
	d.stateDir()
	d.agent()
	d.identity()
	d.conditions()
	d.joinBundle()
	d.broker(ctx)
	d.tunnel()
	d.runtime(ctx)
	d.kubelet()
	d.ports(ctx)
	return d.checks
}

func (d *doctor) add(r CheckResult, name, found, next string) {
	d.checks = append(d.checks, Check{name, r, found, next})
}
func (d *doctor) ok(name, found string)         { d.add(CheckOK, name, found, "") }
func (d *doctor) skip(name, found string)       { d.add(CheckSkipped, name, found, "") }
func (d *doctor) warn(name, found, next string) { d.add(CheckWarn, name, found, next) }
func (d *doctor) fail(name, found, next string) { d.add(CheckFailed, name, found, next) }

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func (d *doctor) stateDir() {
	const name = "state directory"
	dir := d.cfg.StateDir
	err := unix.Access(dir, unix.W_OK)
	switch {
	case errors.Is(err, os.ErrNotExist):
		d.ok(name, dir+" is made at the first start")
	case err != nil:
		d.fail(name, fmt.Sprintf("%s can't be written to: %v", dir, err), "run this as root; if it is read-only, remount it, or set stateDir")
	default:
		d.ok(name, dir)
	}
}

func (d *doctor) agent() {
	const name = "agent"
	if d.status == nil {
		d.fail(name, "does not answer at "+d.socket, "systemctl enable --now edge-agent; journalctl -u edge-agent says why if it does not stay up")
		return
	}
	d.ok(name, "running, "+d.status.Version)
}

func (d *doctor) identity() {
	const name = "identity"
	id, err := d.joiner.LoadIdentity()
	switch {
	case errors.Is(err, os.ErrPermission):
		d.fail(name, oneLine(err.Error()), "run this as root")
		return
	case errors.Is(err, join.ErrNotEnrolled):
		next := "it enrols itself once it has a join bundle and reaches the broker (see the other checks)"
		if d.reason(condEnrolled) == reasonPending {
			next = "it enrols itself once an operator has approved it (see approval)"
		}
		d.fail(name, oneLine(err.Error()), next)
		return
	case err != nil:
		d.fail(name, oneLine(err.Error()), "see the message")
		return
	}
	d.id = id
	left := id.NotAfter().Sub(d.joiner.Clock().Now()).Round(time.Minute)
	who := fmt.Sprintf("node %s of tenant %s", id.Node, id.Tenant)
	switch {
	case left <= 0:
		d.fail(name, who+", but its certificate has expired", "the broker renews it by the node's key once it is reached (see below); if it refuses, put a new join bundle in place (`broker token create`)")
	case time.Now().Before(id.EnrolledAt.Add(-24 * time.Hour)):
		d.fail(name, fmt.Sprintf("%s, enrolled on %s, which is in the future", who, id.EnrolledAt.Format(time.DateOnly)), "set the clock (timedatectl, chronyc)")
	default:
		d.ok(name, fmt.Sprintf("%s, certificate good for %s", who, left))
	}
}

// conditions repeats what the running agent knows and no look from outside finds.
func (d *doctor) conditions() {
	if d.status == nil {
		return
	}
	for _, c := range d.status.Conditions {
		if c.Status != health.False {
			continue
		}
		switch c.Type {
		case condCertificate:
			d.fail("certificate", oneLine(c.Message), "see the checks of the broker below; the message says what else helps")
		case condStorage:
			d.fail("storage", oneLine(c.Message), "free space in, or remount, "+d.cfg.StateDir+"; the agent sees it by itself")
		case condClock:
			d.fail("system clock", oneLine(c.Message), "set the clock (timedatectl set-ntp true, chronyc makestep); node.setClock: true has the agent set one that is behind")
		case condNetwork:
			d.warn("cluster network", oneLine(c.Message), "have the service CIDR put right at the control plane, or set dial.serviceCIDRs")
		case condAdvertise:
			d.warn("API for pods", oneLine(c.Message), "the message says what is in the way; api.advertise: false switches it off")
		case condEnrolled:
			if c.Reason == reasonPending {
				d.warn("approval", oneLine(c.Message), "have an operator compare the key with `broker node pending`, and approve it")
			}
		}
	}
}

func (d *doctor) joinBundle() {
	const name = "join bundle"
	b, path, err := findBundle(d.cfg, unitCredentials)
	switch {
	case err == nil && d.id != nil && b.Tenant != "" && b.Tenant != d.id.Tenant:
		d.warn(name, fmt.Sprintf("%s is for tenant %s, but the node is enrolled in %s", path, b.Tenant, d.id.Tenant), "`edge-agent reset` before it can join the other")
	case err == nil:
		d.bundle = &b
		tenant := "tenant " + b.Tenant
		if b.Tenant == "" {
			tenant = "whichever tenant the broker says,"
		}
		d.ok(name, fmt.Sprintf("%s, for %s at %s", path, tenant, b.Endpoint))
	case d.id != nil:
		d.skip(name, "not needed: enrolled already")
	default:
		d.fail(name, oneLine(err.Error()), "`broker token create --tenant T` prints one; put it at "+d.cfg.JoinFile)
	}
}

func (d *doctor) tunnel() {
	const name = "tunnel"
	switch {
	case d.status == nil:
		d.skip(name, "the agent is not running")
	case d.status.Tunnel.Connected:
		t := d.status.Tunnel
		d.ok(name, fmt.Sprintf("up by %s to %s, rtt %s", t.Transport, t.Remote, t.RTT))
	default:
		next := "see the checks of the broker above"
		switch {
		case d.id == nil:
			next = "it is made once the node is enrolled (see identity)"
		case d.reason(condTunnel) == "Quarantined" || d.reason(condTunnel) == "Revoked":
			next = "the broker is reached, and refuses this box: an operator decides there (`broker node show`)"
		}
		d.fail(name, d.condition(condTunnel), next)
	}
}

// reason is the running agent's one word on a matter, empty if it does not run.
func (d *doctor) reason(typ string) string {
	if d.status != nil {
		for _, c := range d.status.Conditions {
			if c.Type == typ {
				return c.Reason
			}
		}
	}
	return ""
}

// condition is the running agent's own word on a matter.
func (d *doctor) condition(typ string) string {
	for _, c := range d.status.Conditions {
		if c.Type == typ {
			return oneLine(c.Message)
		}
	}
	return string(health.Unknown)
}

func (d *doctor) runtime(ctx context.Context) {
	const name = "container runtime"
	endpoint := "unix:///run/containerd/containerd.sock"
	if s, ok := d.cfg.Kubelet.Config["containerRuntimeEndpoint"].(string); ok && s != "" {
		endpoint = s
	}
	path, isUnix := strings.CutPrefix(endpoint, "unix://")
	if !isUnix && !strings.HasPrefix(endpoint, "/") {
		d.skip(name, endpoint+" is no socket path")
		return
	}
	dialer := net.Dialer{Timeout: 3 * time.Second}
	c, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		d.fail(name, fmt.Sprintf("nothing answers at %s: %v", path, errors.Unwrap(err)), "install and start one (systemctl enable --now containerd), or set kubelet.config.containerRuntimeEndpoint")
		return
	}
	c.Close()
	d.ok(name, "answers at "+path)
}

func (d *doctor) kubelet() {
	const name = "kubelet"
	mode := kubeletMode(d.cfg)
	if mode == "child" {
		if err := unix.Access(d.cfg.Kubelet.Path, unix.X_OK); err != nil {
			d.fail(name, fmt.Sprintf("%s can't be run: %v", d.cfg.Kubelet.Path, err), "install the kubelet, or set kubelet.path")
			return
		}
	}
	switch {
	case mode == "none":
		d.skip(name, "left to others (kubelet.mode: none)")
	case d.status == nil:
		d.skip(name, "the agent is not running")
	case d.status.Kubelet.Running:
		d.ok(name, d.status.Kubelet.Message)
	case d.id == nil:
		d.fail(name, "not started: the node is not enrolled", "see identity above")
	case d.status.Kubelet.Message == "":
		d.fail(name, "not started: "+d.condition(condBootstrap), "see the message; `edge-agent status` follows it")
	default:
		next := "see " + d.joiner.Paths().Log
		if mode == "systemd" {
			next = "journalctl -u " + d.cfg.Kubelet.Unit
		}
		d.fail(name, d.status.Kubelet.Message, next)
	}
}

// ports looks whether somebody else sits where the agent and the kubelet have to.
func (d *doctor) ports(ctx context.Context) {
	const name = "ports"
	type port struct {
		address, what, setting string
		ours                   bool
	}
	ports := []port{
		{d.cfg.APIAddress, "local API endpoint", "apiAddress", d.status != nil},
		{fmt.Sprintf(":%d", d.cfg.Kubelet.Port), "kubelet", "kubelet.port", d.status != nil && d.status.Kubelet.Running},
	}
	if d.cfg.HealthAddress != "" {
		ports = append(ports, port{d.cfg.HealthAddress, "health endpoint", "healthAddress", d.status != nil})
	}
	good := true
	for _, p := range ports {
		if p.ours {
			continue
		}
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", p.address)
		if err != nil {
			good = false
			d.fail(name, fmt.Sprintf("%s for the %s: %v", p.address, p.what, err), fmt.Sprintf("`ss -ltnp` shows who has it; stop that, or set %s", p.setting))
			continue
		}
		l.Close()
	}
	if good {
		d.ok(name, "free, or ours")
	}
}
