// Package hostsfile keeps, for each tenant, a hosts file (hosts(5)) with the names of its nodes, to be
// used as /etc/hosts by that tenant's API servers.
//
// kube-apiserver looks a node's name up before it serves nodes/NAME/proxy, and refuses what has no
// address (isProxyableHostname in k8s.io/kubernetes/pkg/registry/core/node). It then dials the node by
// name through its egress, so the address that it found is never used: any that passes its check does.
//
// The files are changed in place and not replaced, so that one that is mounted over /etc/hosts stays
// current. The package watches nothing itself: it is told who comes and goes.
package hostsfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// placeholder stands for every node. It is of TEST-NET-1 (RFC 5737), which nothing routes.
const placeholder = "192.0.2.1"

// Files are the hosts files in one directory, each named after its tenant. Safe for concurrent use.
type Files struct {
	dir string
	log *slog.Logger

	mu sync.Mutex // guards the following fields and the files
	// tenant -> its nodes' names
	names   map[string]map[string]struct{}
	tenants map[string]struct{}
	begun   bool
}

// New prepares files in dir, which is made if absent. None is written before Begin.
func New(dir string, log *slog.Logger) (*Files, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("egress.hostsDir: %w", err)
	}
	return &Files{dir: dir, log: log, names: map[string]map[string]struct{}{}, tenants: map[string]struct{}{}}, nil
}

// Begin says that all tenants and nodes that there are have been told: from now on files are written. What
// an earlier run wrote stays in use until then, or a node would be missing for as long as the telling takes.
func (f *Files) Begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begun = true
	for name := range f.tenants {
		f.write(name)
	}
}

// Tenant makes a tenant's file, or removes it when the tenant is gone.
func (f *Files) Tenant(name string, gone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !gone {
		f.tenants[name] = struct{}{}
		f.write(name)
		return
	}
	delete(f.tenants, name)
	delete(f.names, name)
	if err := os.Remove(f.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.log.Warn("hosts file of a removed tenant can't be removed", "tenant", name, "err", err)
	}
}

// Node adds a node's name to its tenant's file, or takes it out.
func (f *Files) Node(tenant, node string, gone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	nodes := f.names[tenant]
	if nodes == nil {
		if gone {
			return
		}
		nodes = map[string]struct{}{}
		f.names[tenant] = nodes
	}
	if gone {
		delete(nodes, node)
	} else {
		nodes[node] = struct{}{}
	}
	f.write(tenant)
}

func (f *Files) path(tenant string) string { return filepath.Join(f.dir, tenant) }

// write brings a tenant's file up to date. mu is held. A failure is logged and made good by the next
// change: logs and exec work without the file, only nodes/NAME/proxy does not.
func (f *Files) write(tenant string) {
	if _, known := f.tenants[tenant]; !known || !f.begun {
		return
	}
	if err := overwrite(f.path(tenant), f.content(tenant)); err != nil {
		f.log.Error("hosts file for API servers can't be written: nodes/NAME/proxy will not find new nodes", "tenant", tenant, "err", err)
	}
}

func (f *Files) content(tenant string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Kept by the Mooring broker: the nodes of tenant %s, for its API servers' /etc/hosts.\n", tenant)
	b.WriteString("# They are dialled by name through the broker; the address only has to be there.\n")
	b.WriteString("127.0.0.1 localhost\n::1 localhost\n")
	for _, node := range slices.Sorted(maps.Keys(f.names[tenant])) {
		fmt.Fprintf(&b, "%s %s\n", placeholder, node)
	}
	return b.Bytes()
}

// overwrite changes a file in place, new bytes first and the cut after: a reader in between sees
// lines of both, and never a file without the names that stay.
func overwrite(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(data, 0)
	if err == nil {
		err = file.Truncate(int64(len(data)))
	}
	return errors.Join(err, file.Close())
}
