package edgeos

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

// agentGoal is how long the agent should take from its start to the kubelet's, with its certificate: enrolment and TLS bootstrap,
// under emulation. The figure is printed beside it; what fails is four times as much, since machines are noisy.
const agentGoal = 15 * time.Second

// firstToken describes the token of the first two boxes.
const firstToken = "the shops' boxes"

// firstBoot: a box with the image as its disk and the user-data on a stick is switched on and left alone. It becomes a node, a
// pod runs on it, and its logs come through the tunnel.
func (s *suite) firstBoot(t *testing.T, r *row) {
	var err error
	s.bundle, err = s.userData(firstToken, 2)
	must(t, err)
	s.a, err = s.plugWith(2, siteA, serialA, s.images.raw("1"))
	must(t, err)
	s.toReady = s.powerOnFirst(t, r, s.a)
	all := append(steps(s.a.journal(t), s.a.kernelStart(t)), step{"Ready", s.toReady})
	s.a.printSteps(all)
	took := find(t, all, kubeletStarts) - find(t, all, agentStarts)
	s.note(r, "the agent's part %.1f s (goal: %s)", took.Seconds(), agentGoal)
	if took > 4*agentGoal {
		t.Errorf("the agent took %s from its start to the kubelet's, far more than %s", took, agentGoal)
	}
	if find(t, all, "kubelet's certificate") > find(t, all, kubeletStarts) {
		t.Error("the kubelet was started before it had its certificate")
	}
	s.logf("where the boot's time goes:\n%s\n%s", s.a.alone(s.ctx, "systemd-analyze", "time"),
		s.a.alone(s.ctx, "sh", "-c", "systemd-analyze blame --no-pager | grep -v '\\.device$' | head -15"))
}

// powerOnFirst switches a box on that nobody has switched on before, and returns how long it took to Ready. Its pod waits for it.
func (s *suite) powerOnFirst(t *testing.T, r *row, b *box) time.Duration {
	t.Helper()
	must(t, b.insert(s.bundle))
	must(t, s.acme.Apply(s.ctx, fmt.Sprintf(service, b.pod(), b.node)))
	must(t, b.PowerOn())
	ready, err := b.firstReady(s.ctx)
	must(t, err)
	s.note(r, "%s Ready %.0f s after power-on", b.node, ready.Seconds())
	b.await(t, "the pod", 3*time.Minute, func(ctx context.Context) error { return s.acme.PodRunning(ctx, b.pod()) })
	s.note(r, "its pod runs after %.0f s", b.since().Seconds())
	out, err := s.acme.Kubectl(s.ctx, "logs", b.pod())
	must(t, err)
	b.boot = b.ask(t, "cat", bootID)
	if want := "this is " + b.ask(t, "cat", "/etc/machine-id"); strings.TrimSpace(out) != want {
		t.Errorf("the pod of %s says %q, want %q", b.node, out, want)
	}
	return ready
}

// facts are what tells two boxes apart.
type facts struct{ machineID, keyHash string }

// examine looks at what holds for each box: nobody can write to its root, its disk was grown into, and it is somebody.
func (b *box) examine(t *testing.T, r *row) facts {
	t.Helper()
	known, err := b.record(b.s.ctx)
	must(t, err)
	if known.KeyHash == "" {
		t.Errorf("the broker knows no key of %s", b.node)
	}
	id := b.ask(t, "cat", "/etc/machine-id")
	if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) {
		t.Errorf("the machine ID of %s is %q", b.node, id)
	}
	for _, path := range []string{"/usr/x", "/x"} {
		if out, err := b.inside(b.s.ctx, "touch", path); err == nil || !strings.Contains(err.Error(), "Read-only file system") {
			t.Errorf("touch %s on %s: want that the file system is read-only, got %q, %v", path, b.node, out, err)
		}
	}
	var kib int64
	_, err = fmt.Sscan(b.ask(t, "sh", "-c", "df --output=size /var | tail -1"), &kib)
	must(t, err)
	if kib < 4<<20 {
		t.Errorf("/var of %s has %d KiB of a disk of 8 GiB", b.node, kib)
	}
	b.s.note(r, "/var %.1f GiB of 8", float64(kib)/(1<<20))
	return facts{id, known.KeyHash}
}

// immutable is examine for the first box, while nobody restarts it.
func (s *suite) immutable(t *testing.T, r *row) { s.first = s.a.examine(t, r) }

// twoBoxes: a second box starts from the same file with the same user-data. What has to differ between the two does.
func (s *suite) twoBoxes(t *testing.T, r *row) {
	var err error
	s.b, err = s.plug(siteB, serialB, s.images.raw("1"))
	must(t, err)
	s.powerOnFirst(t, r, s.b)
	second := s.b.examine(t, r)
	if second.machineID == s.first.machineID {
		t.Errorf("both boxes have the machine ID %s", second.machineID)
	}
	if second.keyHash == s.first.keyHash {
		t.Errorf("both boxes have the key %s", second.keyHash)
	}
	token, err := s.token(firstToken)
	must(t, err)
	if len(token.UsedBy) != 2 {
		t.Errorf("the token of two boxes was used by %v", token.UsedBy)
	}
}

// noSecretLeft: what let the box in is in no log and on no console, and in no file that others than root may read.
func (s *suite) noSecretLeft(t *testing.T, r *row) {
	found := regexp.MustCompile(`token: "?([a-z0-9]+\.[a-z0-9]+)`).FindStringSubmatch(s.bundle)
	if found == nil {
		t.Fatal("the user-data has no token")
	}
	secret := found[1]
	for _, l := range s.a.Console.From(0) {
		if strings.Contains(l.Text, secret) {
			t.Errorf("it is on the console: %s", l.Text)
		}
	}
	if n := s.a.ask(t, "sh", "-c", "journalctl -q -o cat | grep -cF "+secret+" || true"); n != "0" {
		t.Errorf("it is in the journal %s times", n)
	}
	// The whole path decides who can read a file: it is read as nobody.
	files := s.a.ask(t, "sh", "-c", "grep -rlsF "+secret+" /etc /run /var/log /var/lib/cloud /var/lib/mooring /tmp || true")
	for _, file := range strings.Fields(files) {
		if _, err := s.a.inside(s.ctx, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", file); err == nil {
			t.Errorf("everybody can read it in %s", file)
		}
		if strings.HasPrefix(file, "/var/log/") {
			t.Errorf("it is in the log %s", file)
		}
	}
	s.note(r, "files that root alone can read: %q", strings.Fields(files))
}
