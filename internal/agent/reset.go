package agent

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/mooring-edge/mooring/internal/hostnet"
)

// Reset stops the kubelet and removes identity, key, credentials and files. It returns what it did, line
// by line, also when it fails half-way; run again, it does the rest.
func (a *Agent) Reset(ctx context.Context) ([]string, error) {
	if _, err := os.Stat(a.cfg.StateDir); errors.Is(err, os.ErrNotExist) {
		return []string{"nothing to remove: there is no " + a.cfg.StateDir}, nil
	}
	lock, err := AcquireLock(a.cfg.StateDir, "reset")
	if err != nil {
		return nil, err
	}
	defer func() { _ = lock.Release() }()

	var said []string
	stopped, err := a.stopKubelet(ctx)
	if err != nil {
		return said, fmt.Errorf("stop the kubelet: %w; nothing was removed", err)
	}
	if stopped {
		said = append(said, "stopped the kubelet (its pods' containers run on until the runtime stops them)")
	}
	took, networkErr := forgetNetwork(a.cfg.StateDir, hostnet.BootID, hostnet.RemoveLoopback)
	said = append(said, took...)
	id, idErr := a.joiner.LoadIdentity()
	removed, err := a.joiner.Reset()
	if a.lineage.forget() {
		removed = append(removed, a.lineage.path)
	}
	if networkErr == nil && os.Remove(networkPath(a.cfg.StateDir)) == nil {
		removed = append(removed, networkPath(a.cfg.StateDir))
	}
	err = errors.Join(err, networkErr)
	for _, path := range removed {
		said = append(said, "removed "+path)
	}
	if len(removed) == 0 {
		said = append(said, "nothing to remove in "+a.cfg.StateDir)
	}
	if idErr == nil {
		said = append(said, fmt.Sprintf("kept the pods' data in %s", a.cfg.Kubelet.RootDir),
			fmt.Sprintf("to use the name again: `broker node remove %s/%s` and `kubectl delete node %s`", id.Tenant, id.Node, id.Node))
	}
	return said, err
}

func (a *Agent) stopKubelet(ctx context.Context) (bool, error) {
	switch kubeletMode(a.cfg) {
	case "systemd":
		return a.systemd("").Stop(ctx)
	case "child":
		return a.child(nil, "").Stop(ctx)
	}
	return false, nil
}
