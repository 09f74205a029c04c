package packages

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rpmLifeCycle: as far as a Debian root can show it, rpm's scripts do what the deb's do. The bundle comes as a credential of
// the machine, as a hypervisor or the firmware hands it in. Without LoadCredential= in the unit the agent waits for a bundle: seen.
func (s *suite) rpmLifeCycle(t *testing.T) {
	m := s.newMachine(t, "rpm-1")
	bundle, err := s.tenant.Token(s.ctx)
	must(t, err)
	path := filepath.Join(s.env.Dir(), "rpm-1.join")
	must(t, writeFile(path, bundle))
	m.boot()
	m.sh("rpm --nodeps -i " + m.copyIn(s.rpm(t, "edge-agent", older)))
	m.healthy("installed, not configured")
	m.state(agentUnit, "inactive", "installed, not configured")
	m.sh("rpm -V --nodeps edge-agent")
	if docs := m.sh("rpm -qd edge-agent"); !strings.Contains(docs, "/usr/share/man/man1/edge-agent.1.gz") {
		t.Errorf("documentation: %s", docs)
	}

	// The broker's, beside it: its user, its links, its port.
	m.sh("rpm --nodeps -i " + m.copyIn(s.rpm(t, "edge-broker", older)))
	m.state("edge-broker.service", "inactive", "installed, not configured")
	m.sh("sed -e 's/edge.example.com:443/192.168.1.10:443/' /usr/share/doc/edge-broker/examples/broker.yaml >/etc/mooring/broker.yaml && systemctl start edge-broker && broker status")
	m.state("edge-broker.service", "active", "configured")
	m.sh("rpm --nodeps -e edge-broker && test -e /etc/mooring/broker.yaml && test -d /var/lib/mooring-broker && ! pidof broker")
	m.healthy("without the broker again")

	must(t, m.PowerOff(s.ctx))
	m.Credentials = map[string]string{"mooring.join": path}
	m.boot() // Debian's presets enable it, unlike Fedora's
	first := m.ready("booted with a credential", time.Minute)
	m.sh("! test -e " + joinFile)
	kubelet := m.show("kubelet.service", "MainPID")

	m.sh(`printf '\n# mine\n' >>` + agentYAML)
	m.sh("rpm --nodeps -U " + m.copyIn(s.rpm(t, "edge-agent", newer)))
	got := m.ready("upgraded", 20*time.Second)
	if got.Version != "v"+newer || got.Identity.Fingerprint != first.Identity.Fingerprint {
		t.Errorf("status: %+v", got)
	}
	if now := m.show("kubelet.service", "MainPID"); now != kubelet || kubelet == "0" {
		t.Errorf("the kubelet was process %s, and is %s", kubelet, now)
	}
	if yaml := m.sh("cat " + agentYAML); !strings.Contains(yaml, "# mine") {
		t.Errorf("what was changed is gone: %s", yaml)
	}
	m.healthy("upgraded")

	m.sh("rpm --nodeps -e edge-agent")
	m.sh("test -e /var/lib/mooring/identity.json && grep -q mine " + agentYAML + ".rpmsave && kill -0 " + kubelet)
	m.sh("! pidof edge-agent && ! test -L /etc/systemd/system/multi-user.target.wants/edge-agent.service && ! test -L /etc/systemd/system/kubelet.service")
	m.healthy("erased")
}
