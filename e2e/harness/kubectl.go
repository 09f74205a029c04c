package harness

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// command makes a command of the run, not started. It ends with ctx.
func (e *Env) command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = e.environ()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // an nsenter has a child
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// KubectlCommand is kubectl against the tenant's API server, on the platform, not started.
func (t *Tenant) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	p := t.platform
	argv := append([]string{p.env.Tool("kubectl"), "--kubeconfig", t.Kubeconfig(),
		"--cache-dir", filepath.Join(p.env.Dir(), "home", "kube-cache")}, args...)
	return p.env.command(ctx, p.Net.Argv(argv...)...)
}

// Kubectl runs kubectl and returns its standard output.
func (t *Tenant) Kubectl(ctx context.Context, args ...string) (string, error) {
	return t.KubectlWith(ctx, nil, args...)
}

// KubectlWith is Kubectl with a standard input.
func (t *Tenant) KubectlWith(ctx context.Context, stdin []byte, args ...string) (string, error) {
	cmd := t.KubectlCommand(ctx, args...)
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: kubectl %s: %w: %s", t.Name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), err
}

// Established waits until CRDs are served. kubectl's own waiting fails at once where one is so new that it has no conditions
// (kubernetes/kubernetes#66439), so it's asked again.
func (t *Tenant) Established(ctx context.Context, crds ...string) error {
	args := []string{"wait", "--for=condition=Established", "--timeout=10s"}
	for _, crd := range crds {
		args = append(args, "crd/"+crd)
	}
	_, err := t.platform.env.Wait(ctx, strings.Join(crds, ", "), 30*time.Second, func(ctx context.Context) error {
		_, err := t.Kubectl(ctx, args...)
		return err
	})
	return err
}

// Apply applies a manifest.
func (t *Tenant) Apply(ctx context.Context, manifest string) error {
	_, err := t.KubectlWith(ctx, []byte(manifest), "apply", "-f", "-")
	return err
}

// NodeReady returns nil if the node has the condition Ready.
func (t *Tenant) NodeReady(ctx context.Context, node string) error {
	out, err := t.Kubectl(ctx, "get", "node", node, "--ignore-not-found", "-o",
		`jsonpath={range .status.conditions[?(@.type=="Ready")]}{.status} {.message}{end}`)
	if err != nil {
		return err
	}
	if out == "" {
		return fmt.Errorf("node %s has not registered", node)
	}
	if status, message, _ := strings.Cut(out, " "); status != "True" {
		return fmt.Errorf("node %s is not ready: %s", node, message)
	}
	return nil
}

// NodeBack returns nil if the node is Ready and its kubelet has renewed its lease after since: the
// condition alone stays true for most of a minute after the node has gone.
func (t *Tenant) NodeBack(ctx context.Context, node string, since time.Time) error {
	if err := t.NodeReady(ctx, node); err != nil {
		return err
	}
	out, err := t.Kubectl(ctx, "get", "lease", node, "-n", "kube-node-lease", "--ignore-not-found", "-o", "jsonpath={.spec.renewTime}")
	if err != nil {
		return err
	}
	if out == "" {
		return fmt.Errorf("node %s has no lease yet", node)
	}
	renewed, err := time.Parse(time.RFC3339Nano, out)
	if err != nil {
		return fmt.Errorf("read the lease of node %s: %w", node, err)
	}
	if renewed.Before(since) {
		return fmt.Errorf("node %s was last heard %s, before %s", node, renewed.Local().Format(time.TimeOnly), since.Format(time.TimeOnly))
	}
	return nil
}

// PodRunning returns nil if the pod's containers are ready.
func (t *Tenant) PodRunning(ctx context.Context, pod string) error {
	out, err := t.Kubectl(ctx, "get", "pod", pod, "-o",
		`jsonpath={.status.phase}{" "}{.status.conditions[?(@.type=="Ready")].status}{" "}{.status.containerStatuses[*].state.waiting}`)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(out, "Running True") {
		return fmt.Errorf("pod %s: %s", pod, out)
	}
	return nil
}

// KubectlAs runs kubectl with these credentials and no others: --token, or --client-certificate and --client-key.
func (t *Tenant) KubectlAs(ctx context.Context, credentials []string, stdin []byte, args ...string) (string, error) {
	p := t.platform
	argv := append([]string{p.env.Tool("kubectl"), "--kubeconfig", "/dev/null", "--cache-dir", filepath.Join(p.env.Dir(), "home", "kube-cache"),
		"--server", fmt.Sprintf("https://127.0.0.1:%d", t.Port), "--certificate-authority", t.pki("ca.crt")}, credentials...)
	cmd := p.env.command(ctx, p.Net.Argv(append(argv, args...)...)...)
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: kubectl %s: %w: %s", t.Name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return string(out), err
}

// KubeletCredentials are those of the box's kubelet, for KubectlAs.
func (b *Box) KubeletCredentials(ctx context.Context) ([]string, error) {
	pem, err := b.Run(ctx, "cat", "/var/lib/kubelet/pki/kubelet-client-current.pem") // a link, of the box's own
	if err != nil {
		return nil, err
	}
	path := filepath.Join(b.Site.env.Dir(), "home", b.Site.Name+"-kubelet.pem")
	return []string{"--client-certificate", path, "--client-key", path}, os.WriteFile(path, []byte(pem), 0o600)
}
