package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// counting says a number ten times a second, so that a gap or a cut shows.
const counting = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  nodeSelector: {kubernetes.io/hostname: %[2]s}
  terminationGracePeriodSeconds: 1
  containers:
  - name: count
    image: mooring.test/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"]
    volumeMounts:
    - {name: site, mountPath: /site, readOnly: true}
  volumes:
  - {name: site, hostPath: {path: /etc/site, type: File}}
`

func (s *identitySuite) podsCount(_ *suite, t *testing.T) {
	nodes := []*node{s.edge1, s.edge2, s.edge3}
	for _, n := range nodes {
		must(t, s.acme.Apply(s.ctx, fmt.Sprintf(counting, n.pod(), n.name)))
	}
	for _, n := range nodes {
		s.wait(t, "the pod of "+n.String(), time.Minute, func(ctx context.Context) error {
			return s.acme.PodRunning(ctx, n.pod())
		})
	}
}

// follower is a `kubectl logs -f` of a counting pod.
type follower struct {
	node *node
	cmd  *exec.Cmd
	end  chan error

	mu  sync.Mutex
	out bytes.Buffer
}

func (f *follower) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.out.Write(p)
}

func (s *identitySuite) follow(t *testing.T, n *node) *follower {
	t.Helper()
	f := &follower{node: n, cmd: n.tenant.KubectlCommand(s.ctx, "logs", "-f", n.pod()), end: make(chan error, 1)}
	f.cmd.Stdout, f.cmd.Stderr = f, f
	must(t, f.cmd.Start())
	go func() { f.end <- f.cmd.Wait() }()
	t.Cleanup(func() { _ = f.cmd.Process.Kill() })
	return f
}

// count returns the last number that arrived, if all before it did, each once and in order.
func (f *follower) count() (int, error) {
	f.mu.Lock()
	text := f.out.String()
	f.mu.Unlock()
	select {
	case err := <-f.end:
		f.end <- err
		return 0, fmt.Errorf("logs -f of %s has ended (%v); its last words: %q", f.node, err, text[max(0, len(text)-300):])
	default:
	}
	lines := strings.Split(text, "\n")
	lines = lines[:len(lines)-1] // the rest of it is on its way
	for i, line := range lines {
		if line != strconv.Itoa(i+1) {
			return 0, fmt.Errorf("logs -f of %s: line %d is %q", f.node, i+1, line)
		}
	}
	return len(lines), nil
}

// goesOn returns when the follower has seen twenty numbers more.
func (s *identitySuite) goesOn(t *testing.T, f *follower) int {
	t.Helper()
	first, err := f.count()
	must(t, err)
	last := first
	s.wait(t, "more lines of "+f.node.String(), 20*time.Second, func(context.Context) error {
		if last, err = f.count(); err == nil && last < first+20 {
			err = fmt.Errorf("%d lines, before %d", last, first)
		}
		return err
	})
	return last
}

// caStatus is `broker ca status -o json`.
type caStatus struct {
	CAs                []struct{ Role, Hash string }
	Connected, Renewed int
}

// ca returns the hash of the CA that has the role, empty if none has.
func (c caStatus) ca(role string) string {
	for _, ca := range c.CAs {
		if ca.Role == role {
			return ca.Hash
		}
	}
	return ""
}

func (s *identitySuite) caStatus(t *testing.T) (c caStatus) {
	t.Helper()
	out, err := s.platform.BrokerCommand(s.ctx, "ca", "status", "-o", "json")
	must(t, err)
	must(t, json.Unmarshal([]byte(out), &c))
	return c
}

// caRotated: the broker's CA is replaced, and the old one done away with, while logs stream; a node that was off from
// before the beginning to after the end comes back by itself.
func (s *identitySuite) caRotated(_ *suite, t *testing.T) {
	must(t, s.edge3.box.PowerOff())
	old := s.caStatus(t).ca("issuer")
	streams := []*follower{s.follow(t, s.edge1), s.follow(t, s.edge2)}
	for _, f := range streams {
		s.goesOn(t, f)
	}
	start := time.Now()
	out, err := s.platform.BrokerCommand(s.ctx, "ca", "rotate", "--timeout", "2m")
	must(t, err)
	s.note("rotated in %.0f s", time.Since(start).Seconds())
	now := s.caStatus(t)
	if now.ca("issuer") == old || now.ca("previous") != old {
		t.Fatalf("before, %s was the issuer; now there are %v; ca rotate said:\n%s", old, now.CAs, out)
	}
	s.allRenewed(t)
	// The API server's certificate still is of the old CA, so that can't go without a word.
	if out, err := s.platform.BrokerCommand(s.ctx, "ca", "retire"); err == nil || !strings.Contains(err.Error(), "egress issue") {
		t.Errorf("ca retire while an API server needs the old CA: %v\n%s", err, out)
	}
	for _, f := range streams {
		s.note("%s: %d lines, none lost", f.node, s.goesOn(t, f))
	}
	must(t, s.acme.IssueEgress(s.ctx))
	s.acme.Stop() // an API server reads its egress certificate once
	must(t, s.acme.Start(s.ctx))
	_, err = s.platform.BrokerCommand(s.ctx, "ca", "retire")
	must(t, err)
	if now := s.caStatus(t); now.ca("retired") != old || now.ca("previous") != "" {
		t.Errorf("the old CA %s should be retired: %v", old, now.CAs)
	}
	back := time.Now()
	must(t, s.edge3.box.PowerOn(s.ctx))
	must(t, s.edge3.box.StartAgent())
	s.note("the one that was off was Ready after %.0f s", s.ready(t, s.edge3, 90*time.Second, back).Seconds())
	must(t, s.connectedFrom(s.ctx, s.edge3))
	s.allRenewed(t)
	for _, n := range []*node{s.edge1, s.edge2, s.edge3} {
		s.wait(t, "exec on "+n.String(), time.Minute, s.execWorks(n))
	}
}

// allRenewed: every connected node has a certificate of the CA that issues.
func (s *identitySuite) allRenewed(t *testing.T) {
	t.Helper()
	if now := s.caStatus(t); now.Connected < 3 || now.Renewed != now.Connected {
		t.Errorf("of %d connected nodes, %d have a certificate of the new CA", now.Connected, now.Renewed)
	}
}

// maxKubeletStarts is how often a kubelet may be started until its node is back: with the lapsed certificate, with
// the new one, and one to spare.
const maxKubeletStarts = 4

// kubeletCertificate is the client certificate on the box's disk.
func (n *node) kubeletCertificate(t *testing.T) *x509.Certificate {
	t.Helper()
	dir := "/var/lib/kubelet/pki"
	target, err := os.Readlink(n.box.Path(dir + "/kubelet-client-current.pem"))
	must(t, err)
	data, err := os.ReadFile(n.box.Path(filepath.Join(dir, filepath.Base(target))))
	must(t, err)
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			cert, err := x509.ParseCertificate(block.Bytes)
			must(t, err)
			return cert
		}
	}
	t.Fatalf("%s of %s holds no certificate", target, n)
	return nil
}

// apiClock returns nil if the tenant's API server lives after that time.
func (s *identitySuite) apiClock(after time.Time) error {
	out, err := s.acme.Kubectl(s.ctx, "create", "configmap", "clock", "-o", "jsonpath={.metadata.creationTimestamp}")
	if err != nil {
		return err
	}
	if now, err := time.Parse(time.RFC3339, out); err != nil || now.Before(after) {
		return fmt.Errorf("the API server's clock says %q (%v), want after %s", out, err, after)
	}
	return nil
}

// offFor400Days: every certificate of node and kubelet has run out when the boxes are switched on again, on a platform
// that went on (or, here, was off as well).
func (s *identitySuite) offFor400Days(_ *suite, t *testing.T) {
	back := []*node{s.edge1, s.edge2, s.edge3}
	all := append(back, s.edge4, s.edge5)
	starts := map[*node]int{}
	for _, n := range all {
		must(t, n.box.PowerOff())
		must(t, n.box.SetClock(offFor))
		starts[n] = n.box.KubeletStarts()
		if until := n.kubeletCertificate(t).NotAfter; until.After(time.Now().Add(offFor)) {
			t.Errorf("the kubelet's certificate of %s is good until %s: that proves nothing", n, until)
		}
	}
	s.platform.StopAll()
	s.platform.Clock = offFor
	must(t, s.platform.StartAll(s.ctx))
	// A broker that runs renews its right at a tenant in time. One that was off for so long has to be given it again.
	_, err := s.platform.BrokerCommand(s.ctx, "tenant", "update", "acme", "--kubeconfig", s.acme.Kubeconfig())
	must(t, err)

	start := time.Now()
	must(t, s.apiClock(start.Add(offFor-time.Minute)))
	for _, n := range append(back, s.edge4) {
		must(t, n.box.PowerOn(s.ctx))
		must(t, n.box.StartAgent())
	}
	for _, n := range back {
		s.ready(t, n, 2*time.Minute, start.Add(offFor))
		s.note("%s Ready after %.0f s, kubelet started %d times", n, time.Since(start).Seconds(), n.box.KubeletStarts()-starts[n])
	}
	for _, n := range back {
		s.wait(t, "exec on "+n.String(), time.Minute, s.execWorks(n))
		if count := n.box.KubeletStarts() - starts[n]; count > maxKubeletStarts {
			t.Errorf("the kubelet of %s was started %d times", n, count)
		}
		if until := n.kubeletCertificate(t).NotAfter; until.Before(start.Add(offFor)) {
			t.Errorf("the kubelet's certificate of %s is one that expired on %s", n, until)
		}
	}
	s.agentSays(t, s.edge4, 30*time.Second, "revoked")
	must(t, s.outside(s.ctx, s.edge4))
	if err := s.acme.NodeBack(s.ctx, "edge-4", start.Add(offFor)); err == nil {
		t.Error("the revoked node is Ready")
	}
	if count := s.edge4.box.KubeletStarts() - starts[s.edge4]; count > maxKubeletStarts {
		t.Errorf("the kubelet of the revoked node was started %d times", count)
	}
}
