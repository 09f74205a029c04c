package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// site is where the node really stands, as its pod says it.
func (n *node) site() string { return n.box.Site.Name }

// logs: what the pod said first, with its node by the API's word and its site by the machine's.
func (s *suite) logs(t *testing.T) {
	for _, n := range s.nodes {
		out, err := n.tenant.Kubectl(s.ctx, "logs", n.pod())
		must(t, err)
		if want := fmt.Sprintf("started on %s at %s\n", n.name, n.site()); !strings.HasPrefix(out, want) {
			t.Errorf("logs of %s: %q, want %q first", n, out, want)
		}
	}
}

// lineWatch is a writer that can be waited on for a text.
type lineWatch struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *lineWatch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(p)
}

func (w *lineWatch) has(text string) func(context.Context) error {
	return func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !strings.Contains(w.text.String(), text) {
			return fmt.Errorf("have seen %q", w.text.String())
		}
		return nil
	}
}

// background starts kubectl and returns a function that ends it.
func background(t *testing.T, cmd *exec.Cmd, out io.Writer) (stop func()) {
	t.Helper()
	cmd.Stdout, cmd.Stderr = out, out
	must(t, cmd.Start())
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// logsFollow: lines that the pod says while kubectl watches arrive.
func (s *suite) logsFollow(t *testing.T) {
	for _, n := range s.nodes {
		var out lineWatch
		stop := background(t, n.tenant.KubectlCommand(s.ctx, "logs", "-f", n.pod()), &out)
		s.wait(t, "the first line of logs -f of "+n.String(), 15*time.Second, out.has("started on "+n.name))
		when := time.Now().Format(time.RFC3339Nano) // no other line says that
		said := "at " + when + ", at " + n.site()
		_, err := s.exec(s.ctx, n, `echo "at `+when+`, at $(cat /site)" > /proc/1/fd/1`)
		must(t, err)
		s.wait(t, "a new line of logs -f of "+n.String(), 15*time.Second, out.has(said))
		stop()
	}
}

const bulk = 200 << 20

// execBulk: 200 MB into each pod and out of it again, through kubectl's standard input and output.
func (s *suite) execBulk(t *testing.T) { s.execBulkOn(t, s.nodes) }

// execBulkOne is execBulk for one node: what differs between them is shown elsewhere.
func (s *suite) execBulkOne(t *testing.T) { s.execBulkOn(t, s.nodes[:1]) }

func (s *suite) execBulkOn(t *testing.T, nodes []*node) {
	for i, n := range nodes {
		ctx, cancel := context.WithTimeout(s.ctx, 4*time.Minute)
		up := sha256.New()
		source := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), bulk), up)
		start := time.Now()
		cmd := n.tenant.KubectlCommand(ctx, "exec", "-i", n.pod(), "--", "sh", "-c", "cat > /data/blob; sha256sum < /data/blob; cat /site")
		cmd.Stdin = source
		out, err := cmd.Output()
		tookUp := time.Since(start)
		want := hex.EncodeToString(up.Sum(nil))
		if err != nil || string(out) != want+"  -\n"+n.site()+"\n" {
			t.Errorf("exec -i into %s: %q, %v; want sha256 %s at %s%s", n, out, err, want, n.site(), stderrOf(err))
			cancel()
			continue
		}
		start = time.Now()
		sum, size, err := n.download(ctx)
		tookDown := time.Since(start)
		cancel()
		if err != nil || sum != want {
			t.Errorf("exec out of %s: %d of %d bytes, sha256 %s, %v; want %s", n, size, bulk, sum, err, want)
			continue
		}
		s.note("%s up %.1f s down %.1f s", n, tookUp.Seconds(), tookDown.Seconds())
	}
}

// download reads the pod's blob through exec, and ends the command only once all has arrived.
//
// That is not for the tunnel's sake: kubectl exec loses the end of a large output, at times without an
// error, when the command exits before the API server has passed everything on. It does so under load
// with no tunnel in between too (kubernetes/kubernetes#124571).
func (n *node) download(ctx context.Context) (sum string, size int64, err error) {
	cmd := n.tenant.KubectlCommand(ctx, "exec", "-i", n.pod(), "--", "sh", "-c", "cat /data/blob; read all_here")
	all := &countingHash{Hash: sha256.New(), want: bulk}
	if all.stdin, err = cmd.StdinPipe(); err != nil {
		return "", 0, err
	}
	cmd.Stdout = all
	err = cmd.Run()
	return hex.EncodeToString(all.Sum(nil)), all.size, err
}

// countingHash hashes what is written to it and answers on stdin when it has as much as it wants.
type countingHash struct {
	hash.Hash
	size, want int64
	stdin      io.WriteCloser
}

func (h *countingHash) Write(p []byte) (int, error) {
	h.size += int64(len(p))
	if h.size >= h.want && h.stdin != nil {
		_, _ = io.WriteString(h.stdin, "\n")
		_ = h.stdin.Close()
		h.stdin = nil
	}
	return h.Hash.Write(p)
}

func stderrOf(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "\n" + string(exit.Stderr)
	}
	return ""
}

// cp: a file into the pod and back. The retries are kubectl's own remedy for what download describes.
func (s *suite) cp(t *testing.T) {
	for i, n := range s.nodes {
		dir := t.TempDir()
		data := make([]byte, 3<<20)
		_, _ = rand.NewChaCha8([32]byte{0xc, byte(i)}).Read(data)
		there, back := filepath.Join(dir, "there"), filepath.Join(dir, "back")
		must(t, os.WriteFile(there, data, 0o600))
		_, err := n.tenant.Kubectl(s.ctx, "cp", there, n.pod()+":/data/copied")
		must(t, err)
		_, err = n.tenant.Kubectl(s.ctx, "cp", "--retries=5", n.pod()+":/data/copied", back)
		must(t, err)
		got, err := os.ReadFile(back)
		must(t, err)
		if !bytes.Equal(got, data) {
			t.Errorf("cp to %s and back: %d bytes that differ from the %d sent", n, len(got), len(data))
		}
		_, err = n.tenant.Kubectl(s.ctx, "cp", "--retries=5", n.pod()+":/site", back)
		must(t, err)
		if got, _ = os.ReadFile(back); string(got) != n.site()+"\n" {
			t.Errorf("cp from %s brought the file of %q", n, got)
		}
	}
}

// attach: what is typed reaches the pod's first process, and its answer comes back.
func (s *suite) attach(t *testing.T) {
	for _, n := range s.nodes {
		var out lineWatch
		cmd := n.tenant.KubectlCommand(s.ctx, "attach", "-i", n.pod())
		stdin, err := cmd.StdinPipe()
		must(t, err)
		stop := background(t, cmd, &out)
		_, err = io.WriteString(stdin, "a word to "+n.String()+"\n")
		must(t, err)
		s.wait(t, "the pod's answer to attach at "+n.String(), 15*time.Second, out.has(n.site()+" heard a word to "+n.String()))
		stop()
	}
}

// portForward: an HTTP server in the pod, reached through kubectl.
func (s *suite) portForward(t *testing.T) {
	for i, n := range s.nodes {
		local := fmt.Sprintf("127.0.0.1:%d", 18080+i)
		var out lineWatch
		_, port, _ := net.SplitHostPort(local)
		stop := background(t, n.tenant.KubectlCommand(s.ctx, "port-forward", "pod/"+n.pod(), port+":8080"), &out)
		s.wait(t, "port-forward to "+n.String(), 15*time.Second, out.has("Forwarding from "+local))
		client := http.Client{Transport: &http.Transport{DialContext: s.platform.Net.Dial, DisableKeepAlives: true}}
		for range 3 {
			resp, err := client.Get("http://" + local + "/")
			must(t, err)
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			must(t, err)
			if string(body) != n.site()+"\n" {
				t.Errorf("port-forward to %s reached %q", n, body)
			}
		}
		stop()
	}
}

// metrics: the kubelet's own pages through the API server's node proxy. The kubelet of the right machine
// shows by its cgroupRoot, which no two share.
func (s *suite) metrics(t *testing.T) {
	for _, n := range s.nodes {
		base := "/api/v1/nodes/" + n.name + "/proxy/"
		out, err := n.tenant.Kubectl(s.ctx, "get", "--raw", base+"metrics")
		must(t, err)
		if !strings.Contains(out, fmt.Sprintf("kubelet_node_name{node=%q} 1", n.name)) {
			t.Errorf("metrics of %s do not name it (%d bytes)", n, len(out))
		}
		if out, err = n.tenant.Kubectl(s.ctx, "get", "--raw", base+"configz"); err != nil {
			t.Fatal(err)
		}
		var configz struct {
			Kubeletconfig struct{ CgroupRoot string }
		}
		must(t, json.Unmarshal([]byte(out), &configz))
		if want := "/" + n.box.Cgroup; configz.Kubeletconfig.CgroupRoot != want {
			t.Errorf("proxy to %s reached the kubelet with cgroupRoot %q, want %q", n, configz.Kubeletconfig.CgroupRoot, want)
		}
	}
}

// processes are those of a node that must not have been restarted.
func (n *node) processes() string {
	agent, kubelet := n.box.Agent().PID, n.box.FindProcess("kubelet")
	return fmt.Sprintf("agent %d since %s, kubelet %d since %s", agent, host.StartTime(agent), kubelet, host.StartTime(kubelet))
}
