package harness

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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

// Apply applies a manifest.
func (t *Tenant) Apply(ctx context.Context, manifest string) error {
	_, err := t.KubectlWith(ctx, []byte(manifest), "apply", "-f", "-")
	return err
}

// NodeReady returns nil if the node is Ready and has said so after since.
func (t *Tenant) NodeReady(ctx context.Context, node string, since time.Time) error {
	out, err := t.Kubectl(ctx, "get", "node", node, "-o", "json")
	if err != nil {
		return err
	}
	var n struct {
		Status struct {
			Conditions []struct {
				Type, Status, Message string
				LastHeartbeatTime     time.Time
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &n); err != nil {
		return err
	}
	for _, c := range n.Status.Conditions {
		if c.Type != "Ready" {
			continue
		}
		if c.Status != "True" {
			return fmt.Errorf("node %s is not ready: %s", node, c.Message)
		}
		if c.LastHeartbeatTime.Before(since.Truncate(time.Second)) {
			return fmt.Errorf("node %s has not been heard since %s", node, since.Format(time.TimeOnly))
		}
		return nil
	}
	return fmt.Errorf("node %s has no Ready condition yet", node)
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
