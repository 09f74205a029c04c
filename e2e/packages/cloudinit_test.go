package packages

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

const seed = "/var/lib/cloud/seed/nocloud/"

var tokenForm = regexp.MustCompile(`[a-z2-9]{10}\.([a-z2-9]{32})`)

// cloudInit: a plain Debian that gets nothing but the user-data that `broker token create` printed becomes a node, also if the power went in
// between, keeps no secret, and is that node again after a boot for which it has none. Without edge-agent-seal.service the token is
// found in the user-data that cloud-init keeps, and without its bootcmd no agent is ever installed: seen.
func (s *suite) cloudInit(t *testing.T) {
	m := s.newMachine(t, "cloud-1")
	deb := s.deb(t, "edge-agent", older)
	data, err := os.ReadFile(deb)
	must(t, err)
	sum := sha256.Sum256(data)
	const place = "/srv/edge-agent.deb"
	userData, err := s.tenant.Token(s.ctx, "--format", "cloud-init", "--uses", "3", "--package", "file://"+place, "--package-sha256", hex.EncodeToString(sum[:]))
	must(t, err)
	secret := tokenForm.FindStringSubmatch(userData)
	if secret == nil {
		t.Fatalf("no token in the user-data:\n%s", userData)
	}
	m.seed("cloud-1", userData)

	// The power goes before what cloud-init wrote is on the disk: the files are there, and empty, and its marks say that they were written.
	m.boot()
	m.sh("cloud-init status --wait >/dev/null || true")
	must(t, m.PowerOff(s.ctx))
	for path, perm := range map[string]os.FileMode{
		joinFile: 0o600, "/etc/systemd/system/edge-agent-install.service": 0o644, "/var/lib/cloud/instances/cloud-1/scripts/runcmd": 0o700,
	} {
		if info, err := os.Stat(m.Path(path)); err != nil || info.Size() == 0 {
			t.Errorf("cloud-init has not written %s: %v", path, err)
		}
		m.write(path, "", perm)
	}
	m.write(place, string(data), 0o644) // nor was the package there

	began := time.Now()
	m.boot()
	s.logf("%s: booted in %.1f s", m.Name, time.Since(began).Seconds())
	first := m.ready("installed by cloud-init", 2*time.Minute)
	m.sealed(secret[1])
	m.healthy("cloud-init is through")
	if mode := m.sh("stat -c %a /etc/mooring"); mode != "750" {
		t.Errorf("/etc/mooring has mode %s", mode)
	}

	must(t, m.PowerOff(s.ctx))
	m.boot()
	again := m.ready("booted again", time.Minute)
	if again.Identity.Fingerprint != first.Identity.Fingerprint || again.Identity.Node != first.Identity.Node {
		t.Errorf("another node: %+v, was %+v", again.Identity, first.Identity)
	}
	m.sealed(secret[1])
	if out := m.sh("cloud-init status --long"); !strings.Contains(out, "status: done") {
		t.Errorf("cloud-init: %s", out)
	}
	// Its own marks say how often it was a first boot.
	if n := m.sh("ls -d /var/lib/cloud/instances/*/ | wc -l"); n != "1" {
		t.Errorf("%s instances: cloud-init took the box for another", n)
	}
	m.healthy("booted again")
}

// image: the deb is installed in a tree with no systemd about, as an image is made; a box of it gets only configuration.
func (s *suite) image(t *testing.T) {
	m := s.newMachine(t, "image-1")
	said, err := m.Chroot(s.ctx, "sh", "-c", apt+"install "+m.copyIn(s.deb(t, "edge-agent", older)))
	must(t, err)
	if strings.Contains(said, "ailed") || strings.Contains(said, "rror") {
		t.Errorf("installed in a chroot: %s", said)
	}
	userData, err := s.tenant.Token(s.ctx, "--format", "cloud-init")
	must(t, err)
	secret := tokenForm.FindStringSubmatch(userData)
	m.seed("image-1", userData)
	m.boot()
	m.ready("configured by cloud-init", time.Minute)
	m.sealed(secret[1])
	m.healthy("cloud-init is through")
	if got := m.sh("systemctl is-enabled edge-agent.service"); got != "enabled" {
		t.Errorf("the agent is %s", got)
	}
}

// seed gives the machine user-data, as a provisioning system does that writes to its disk.
func (m *machine) seed(hostname, userData string) {
	m.write(seed+"user-data", userData, 0o600)
	m.write(seed+"meta-data", "instance-id: "+hostname+"\nlocal-hostname: "+hostname+"\n", 0o600)
	m.write("/etc/cloud/cloud.cfg.d/99-test.cfg", "network: {config: disabled}\nlocale: false\ndatasource_list: [NoCloud, None]\n", 0o644)
}

// sealed waits until cloud-init and the seal are through, and looks for the secret in all of the machine.
func (m *machine) sealed(secret string) {
	m.t.Helper()
	m.sh("cloud-init status --wait >/dev/null; systemctl start edge-agent-seal.service")
	m.sh("! test -e " + joinFile)
	out, _ := m.Run(m.s.ctx, "grep", "-rlF", "--exclude-dir=proc", "--exclude-dir=sys", secret, "/")
	if found := strings.TrimSpace(out); found != "" {
		m.t.Errorf("the token's secret is in\n%s", found)
	}
	if out := m.sh("journalctl --no-pager -a | grep -cF " + secret + " || true"); out != "0" {
		m.t.Errorf("the token's secret is in %s lines of the journal", out)
	}
}
