package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
)

// unit is what systemd has read of a service.
type unit struct {
	name             string
	loaded           string // systemd's LoadState: "loaded", "not-found", "masked", ...
	environmentFiles []string
	program          string   // of its first ExecStart
	command          []string // that one, with its arguments
}

// suits says why the unit would not run the kubelet of this node, or nil, and what to do about it. Starting another would
// run a kubelet that belongs to another cluster, or to none.
func (u unit) suits(p Paths) error {
	switch {
	case u.loaded == "not-found":
		return fmt.Errorf("there is no %s on this machine: the packages' edge-agent.service makes one when it starts (systemctl restart edge-agent); "+
			"elsewhere write one with EnvironmentFile=%s and ExecStart=/usr/bin/kubelet $KUBELET_ARGS", u.name, p.Environment)
	case u.loaded == "masked":
		return fmt.Errorf("%s is masked: `systemctl unmask %s`, or set kubelet.mode", u.name, u.name)
	}
	reads := slices.Contains(u.environmentFiles, p.Environment)
	for _, arg := range u.command {
		reads = reads || strings.HasSuffix(arg, "="+p.Kubeconfig)
	}
	if !reads {
		return fmt.Errorf("%s does not read %s, so it would not run the kubelet of this node, and is not started. If it is of another cluster, "+
			"take the machine out of that first (kubeadm reset) and restart edge-agent; else give it a drop-in (systemctl edit %s) with "+
			"EnvironmentFile=%s and ExecStart=/usr/bin/kubelet $KUBELET_ARGS", u.name, p.Environment, u.name, p.Environment)
	}
	if _, err := os.Stat(u.program); errors.Is(err, fs.ErrNotExist) && u.program != "" {
		return fmt.Errorf("%s runs %s, which is not there: install a kubelet", u.name, u.program)
	}
	return nil
}

// unitSuits asks systemd about a unit.
func unitSuits(ctx context.Context, name string, p Paths) error {
	u := unit{name: name}
	err := withSystemd(ctx, func(c *dbus.Conn) error {
		state, err := c.GetUnitPropertyContext(ctx, name, "LoadState")
		if err != nil {
			return err
		}
		u.loaded, _ = state.Value.Value().(string)
		if u.loaded != "loaded" {
			return nil
		}
		files, err := c.GetServicePropertyContext(ctx, name, "EnvironmentFiles") // a(sb)
		if err != nil {
			return err
		}
		u.environmentFiles = firsts(files.Value.Value())
		start, err := c.GetServicePropertyContext(ctx, name, "ExecStart") // a(sasbttttuii)
		if err != nil {
			return err
		}
		if lines, _ := start.Value.Value().([][]any); len(lines) > 0 && len(lines[0]) > 1 {
			u.program, _ = lines[0][0].(string)
			u.command, _ = lines[0][1].([]string)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("can't ask systemd about %s: %w", name, err)
	}
	return u.suits(p)
}

// firsts are the first fields of D-Bus structs, where they are strings.
func firsts(structs any) (out []string) {
	lines, _ := structs.([][]any)
	for _, l := range lines {
		if len(l) > 0 {
			if s, ok := l[0].(string); ok {
				out = append(out, s)
			}
		}
	}
	return out
}
