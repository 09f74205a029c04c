package packages

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	agentUnit  = "edge-agent.service"
	joinFile   = "/etc/mooring/join.yaml"
	agentYAML  = "/etc/mooring/agent.yaml"
	apt        = "apt-get -q -y --no-install-recommends -o Dpkg::Use-Pty=0 "
	leftBehind = `find / -xdev \( -iname '*mooring*' -o -iname '*edge-agent*' -o -name 'kubelet.service*' \) -not -path '/root/*' -not -path '/proc/*' -not -path '/sys/*' -not -path '/var/log/*' -not -path '/var/cache/*'`
)

// brokerPackage: installed, it starts nothing; with its one line of configuration it serves as a user of its own on a low
// port, and root's commands find it.
func (s *suite) brokerPackage(t *testing.T) {
	m := s.newMachine(t, "pkg-broker")
	m.boot()
	m.sh(apt + "install " + m.copyIn(s.deb(t, "edge-broker", older)))
	m.healthy("installed, not configured")
	m.state("edge-broker.service", "inactive", "installed, not configured")

	m.exposure("edge-broker.service", 15)
	m.sh(`sed -e 's/edge.example.com:443/` + "192.168.1.10:443" + `/' /usr/share/doc/edge-broker/examples/broker.yaml >/etc/mooring/broker.yaml && chmod 600 /etc/mooring/broker.yaml`)
	m.sh("systemctl start edge-broker")
	m.state("edge-broker.service", "active", "configured")
	if out := m.sh("broker status"); !strings.Contains(out, "Front") {
		t.Errorf("broker status: %s", out)
	}
	if user := m.sh("ps -o user:20= -p " + m.show("edge-broker.service", "MainPID")); user != "mooring-broker" {
		t.Errorf("it runs as %s", user)
	}
	began := time.Now()
	m.sh("systemctl restart edge-broker && broker status >/dev/null")
	s.logf("pkg-broker: restarted in %.1f s", time.Since(began).Seconds())
	m.sh(apt + "remove edge-broker && test -e /etc/mooring/broker.yaml && test -d /var/lib/mooring-broker")
	m.healthy("removed")
	m.sh(apt + "purge edge-broker")
	if left := m.sh(leftBehind); left != "" {
		t.Errorf("purged, and there is still\n%s", left)
	}
}

// debLifeCycle is the life of edge-agent's deb on one box.
func (s *suite) debLifeCycle(t *testing.T) {
	m := s.newMachine(t, "deb-1")
	m.boot()
	before := m.sh("systemctl list-units --no-legend --state=active --type=service | wc -l")
	m.sh(apt + "install " + m.copyIn(s.deb(t, "edge-agent", older)))
	m.healthy("installed, not configured")
	m.state(agentUnit, "inactive", "installed, not configured")
	if after := m.sh("systemctl list-units --no-legend --state=active --type=service | wc -l"); after != before {
		t.Errorf("an install that is not configured went from %s active services to %s", before, after)
	}
	if out, err := m.Run(s.ctx, "edge-agent", "status"); err == nil || !strings.Contains(out, "is it running") {
		t.Errorf("status of an agent that is not there: %s", out)
	}

	m.exposure("edge-agent.service", 21)
	m.exposure("edge-agent-seal.service", 11)

	bundle, err := s.tenant.Token(s.ctx)
	must(t, err)
	m.sh(`printf '\n# mine\ntunnel: {transport: tcp}\n' >>` + agentYAML)
	m.write(joinFile, bundle, 0o600)
	m.sh("systemctl start edge-agent")
	m.state(agentUnit, "active", "configured") // Type=notify: start returns once it has notified
	first := m.ready("configured", time.Minute)
	m.state("kubelet.service", "active", "ready")
	m.healthy("configured")
	if first.Kubelet.PID == 0 || first.Version != "v"+older {
		t.Errorf("status: %+v", first)
	}
	// What the sandbox would be in the way of: addresses on the loopback interface, files, the console.
	m.noneFalse()
	m.untilGone(joinFile) // edge-agent-seal.path saw the identity
	if out, err := m.Run(s.ctx, "edge-agent", "doctor"); strings.Contains(out, "join bundle") && !strings.Contains(out, "not needed: enrolled already") {
		t.Errorf("doctor, sealed: %s (%v)", out, err)
	}

	t.Run("Watchdog", func(t *testing.T) { s.watchdog(t, m) })
	t.Run("Upgrade", func(t *testing.T) { s.upgrade(t, m, first) })
	t.Run("RemoveAndPurge", func(t *testing.T) { s.removeAndPurge(t, m, first) })
}

// exposure checks a unit's sandbox against what docs/install-deb.md says of it, in tenths.
func (m *machine) exposure(unit string, most int) {
	m.t.Helper()
	if out, err := m.Run(m.s.ctx, "systemd-analyze", "security", fmt.Sprintf("--threshold=%d", most), unit); err != nil {
		m.t.Errorf("%s is more exposed than %d tenths: %s", unit, most, out)
	}
}

// noneFalse waits until no condition is False. With no capability in the unit, APIForPods stays so: seen.
func (m *machine) noneFalse() {
	m.t.Helper()
	_, err := m.s.env.Wait(m.s.ctx, "all conditions", 30*time.Second, func(context.Context) error {
		got, err := m.status()
		for _, c := range got.Conditions {
			if c.Status == "False" {
				return fmt.Errorf("%s: %s", c.Type, c.Message)
			}
		}
		return err
	})
	must(m.t, err)
	if out := m.sh("ip -brief address show lo"); !strings.Contains(out, "198.51.100.1/32") {
		m.t.Errorf("the address for pods is not on lo: %s", out)
	}
}

// watchdog: an agent that does nothing any more is ended and started again by systemd. With WatchdogSec=infinity in the drop-in the
// wait runs into its limit: seen.
func (s *suite) watchdog(t *testing.T, m *machine) {
	m.t = t
	if got := m.show(agentUnit, "WatchdogUSec"); got != "30s" {
		t.Errorf("the unit's watchdog: %s", got)
	}
	// The unit's own would make the test longer, no other.
	m.write("/run/systemd/system/edge-agent.service.d/test.conf", "[Service]\nWatchdogSec=3s\nTimeoutStopSec=2s\n", 0o644)
	m.sh("systemctl daemon-reload && systemctl restart edge-agent")
	m.ready("restarted", 20*time.Second)
	pid := m.show(agentUnit, "MainPID")
	m.sh("kill -STOP " + pid)
	took, err := s.env.Wait(s.ctx, "the watchdog", 30*time.Second, func(context.Context) error {
		if now := m.show(agentUnit, "MainPID"); now == pid || now == "0" {
			return fmt.Errorf("process %s", now)
		}
		return nil
	})
	must(t, err)
	s.logf("%s: stopped by SIGSTOP, another process after %.1f s", m.Name, took.Seconds())
	m.ready("after the watchdog", 20*time.Second)
	if n := m.show(agentUnit, "NRestarts"); n != "1" {
		t.Errorf("restarts: %s", n)
	}
	m.sh("rm -r /run/systemd/system/edge-agent.service.d && systemctl daemon-reload && systemctl restart edge-agent")
	m.ready("with the unit's own watchdog", 20*time.Second)
}

// upgrade: the tunnel is away for a restart, the kubelet not at all, and what somebody changed is kept: the scripts stop nothing before the
// new files are there. With a stop and a start 3 s apart in postinst it is away for 3.2 s: seen.
func (s *suite) upgrade(t *testing.T, m *machine, first status) {
	m.t = t
	yaml := m.sh("cat " + agentYAML)
	kubelet := m.show("kubelet.service", "MainPID")
	m.sh(apt + "install " + m.copyIn(s.deb(t, "edge-agent", newer)))
	got := m.ready("upgraded", 20*time.Second)
	// From the moment on which systemd began to stop the old one.
	down := got.Tunnel.Since.Sub(m.timestamp(agentUnit, "ActiveExitTimestamp"))
	s.logf("%s: upgraded: the tunnel was back %.2f s after the restart began", m.Name, down.Seconds())
	if down <= 0 || down > 2*time.Second {
		t.Errorf("the tunnel was back %s after the restart began, want at most 2 s", down)
	}
	if got.Version != "v"+newer || got.Identity == nil || got.Identity.Fingerprint != first.Identity.Fingerprint {
		t.Errorf("status: %+v", got)
	}
	if now := m.show("kubelet.service", "MainPID"); now != kubelet || kubelet == "0" {
		t.Errorf("the kubelet was process %s, and is %s", kubelet, now)
	}
	if now := m.sh("cat " + agentYAML); now != yaml || !strings.Contains(now, "# mine") {
		t.Errorf("%s was\n%s\nand is\n%s", agentYAML, yaml, now)
	}
	m.healthy("upgraded")
}

// removeAndPurge: remove keeps what makes the box this node, and its kubelet; purge leaves nothing. Without the stop in postrm the kubelet
// runs on after it, with files that are gone: seen.
func (s *suite) removeAndPurge(t *testing.T, m *machine, first status) {
	m.t = t
	kubelet := m.show("kubelet.service", "MainPID")
	m.sh(apt + "remove edge-agent")
	m.sh("test -e " + agentYAML + " && test -e /var/lib/mooring/identity.json && ! test -e /usr/bin/edge-agent")
	m.sh("kill -0 " + kubelet + " && ! test -L /etc/systemd/system/kubelet.service")
	m.healthy("removed")
	if out, err := m.Run(s.ctx, "pidof", "edge-agent"); err == nil {
		t.Errorf("removed, and it runs on: %s", out)
	}

	m.sh(apt + "install " + m.copyIn(s.deb(t, "edge-agent", newer)))
	again := m.ready("installed again", 30*time.Second)
	if again.Identity.Fingerprint != first.Identity.Fingerprint {
		t.Errorf("another identity: %+v", again.Identity)
	}
	if now := m.show("kubelet.service", "MainPID"); now != kubelet {
		t.Errorf("the kubelet was process %s, and is %s", kubelet, now)
	}
	m.healthy("installed again")

	m.sh(apt + "purge edge-agent")
	if left := m.sh(leftBehind); left != "" {
		t.Errorf("purged, and there is still\n%s", left)
	}
	if _, err := m.Run(s.ctx, "kill", "-0", kubelet); err == nil {
		t.Errorf("purged, and the kubelet %s runs on with an identity that is gone", kubelet)
	}
	m.healthy("purged")

	m.sh(apt + "install " + m.copyIn(s.deb(t, "edge-agent", older)))
	m.state(agentUnit, "inactive", "installed after a purge")
	m.healthy("installed after a purge")
}

// kubeletOfOthers: a kubelet that is a node of another cluster is left as it is, and the agent says why it starts none; one
// that a package brought and nobody has used becomes the node's. kubelet-unit links no drop-in in the first case, and the agent looks
// whether the unit reads its files; without either of the two the other cluster's kubelet runs as this node's, or as its own: seen, both.
func (s *suite) kubeletOfOthers(t *testing.T) {
	m := s.newMachine(t, "deb-2")
	const vendors = "/usr/lib/systemd/system/kubelet.service"
	m.write(vendors, "[Unit]\nDescription=the vendor's\n[Service]\nExecStart=/usr/bin/kubelet --kubeconfig=/etc/kubernetes/kubelet.conf\nRestart=always\n[Install]\nWantedBy=multi-user.target\n", 0o644)
	m.write(vendors+".d/10-kubeadm.conf", "[Service]\nEnvironment=KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\nExecStart=\nExecStart=/usr/bin/kubelet --kubeconfig=/etc/kubernetes/kubelet.conf $KUBELET_CONFIG_ARGS\n", 0o644)
	m.write("/etc/kubernetes/kubelet.conf", "another cluster's\n", 0o600)
	bundle, err := s.tenant.Token(s.ctx)
	must(t, err)
	m.boot()
	m.sh(apt + "install " + m.copyIn(s.deb(t, "edge-agent", older)))
	m.write(joinFile, bundle, 0o600)
	m.sh("systemctl start edge-agent")
	_, err = s.env.Wait(s.ctx, "the agent to say that the kubelet is another's", 30*time.Second, func(context.Context) error {
		if got, _ := m.status(); !strings.Contains(got.Kubelet.Message, "does not read /var/lib/mooring/kubelet.env") {
			return fmt.Errorf("kubelet: %q", got.Kubelet.Message)
		}
		return nil
	})
	must(t, err)
	m.state("kubelet.service", "inactive", "another cluster's")
	m.sh("! test -e /etc/systemd/system/kubelet.service.d")

	m.sh("rm /etc/kubernetes/kubelet.conf && systemctl restart edge-agent")
	m.ready("the kubelet is nobody's", 30*time.Second)
	if out := m.sh("tr '\\0' ' ' </proc/$(systemctl show -P MainPID kubelet)/cmdline"); !strings.Contains(out, "--kubeconfig=/var/lib/mooring/kubelet.kubeconfig") || strings.Contains(out, "/etc/kubernetes") {
		t.Errorf("the kubelet runs as %s", out)
	}
	m.healthy("with a vendor's kubelet")
	m.sh(apt + "remove edge-agent && ! test -e /etc/systemd/system/kubelet.service.d && test -e " + vendors)
}
