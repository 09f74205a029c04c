package files

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
)

const (
	extension = ".yaml"
	// maxFile bounds a tenant's file, in bytes.
	maxFile = 64 << 10
	// swaps is how often a mount may be swapped under one look.
	swaps = 3
)

// found is one file at one look.
type found struct {
	want Want
	sum  [sha256.Size]byte // of the file and its kubeconfig
	err  error             // it is there, and that is all that is known
}

// readDir reads all tenants' files, by their tenants' names. Those of a ConfigMap's mount are read through the link that the kubelet swaps,
// so that all are of one version.
func readDir(dir string) (map[string]found, error) {
	for range swaps {
		link, err := os.Readlink(filepath.Join(dir, "..data"))
		base := dir
		if err == nil {
			if base = link; !filepath.IsAbs(link) {
				base = filepath.Join(dir, link)
			}
		}
		out, readErr := readVersion(dir, base)
		if now, _ := os.Readlink(filepath.Join(dir, "..data")); now == link {
			return out, readErr
		}
	}
	return nil, fmt.Errorf("%s changes while it is read", dir)
}

func readVersion(dir, base string) (map[string]found, error) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return nil, err
	}
	out := map[string]found{}
	for _, e := range entries {
		file := e.Name()
		if strings.HasPrefix(file, ".") {
			continue
		}
		name, ok := strings.CutSuffix(file, extension)
		if !ok {
			if name, ok = strings.CutSuffix(file, ".yml"); ok {
				if _, there := out[name]; !there { // entries are sorted: NAME.yaml was before
					out[name] = found{err: fmt.Errorf("%s: want a file NAME%s", file, extension)}
				}
			}
			continue
		}
		f, err := readTenant(dir, base, name)
		if errors.Is(err, fs.ErrNotExist) {
			if _, err := os.Lstat(filepath.Join(base, file)); errors.Is(err, fs.ErrNotExist) {
				continue // gone meanwhile
			}
		}
		if err != nil {
			f.err = fmt.Errorf("%s: %w", file, err)
		}
		out[name] = f
	}
	return out, nil
}

// readTenant reads and parses NAME.yaml, and the kubeconfig if it is there.
func readTenant(dir, base, name string) (f found, err error) {
	data, err := readFile(filepath.Join(base, name+extension), maxFile)
	if err != nil {
		return f, err
	}
	f.sum = sha256.Sum256(data)
	if f.want, err = parse(name, data); err != nil {
		return f, err
	}
	path := f.want.kubeconfigFile
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	f.want.Kubeconfig, f.want.KubeconfigErr = readFile(path, tenant.MaxKubeconfig)
	f.sum = sha256.Sum256(append(f.sum[:], f.want.Kubeconfig...))
	return f, nil
}

// parse makes of a file what it wants.
func parse(name string, data []byte) (Want, error) {
	if err := pki.ValidTenant(name); err != nil {
		return Want{}, err
	}
	t, err := config.DecodeTenant(name+extension, data)
	if err != nil {
		return Want{}, err
	}
	return Want{
		Name: name, Owner: owner(name), kubeconfigFile: t.KubeconfigFile,
		Upstreams: t.Upstreams, Hosts: t.Hosts, ServiceCIDRs: t.ServiceCIDRs, ProxyProtocol: t.ProxyProtocol,
	}, nil
}

// readFile reads a file of at most limit bytes; nothing that could be waited for, such as a pipe.
func readFile(path string, limit int64) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > limit {
		return nil, fmt.Errorf("%s: want a file of at most %d bytes", path, limit)
	}
	return os.ReadFile(path)
}
