package join

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Reset removes what makes this box a node: identity, key, and the kubelet's credentials and files. What
// pods left (volumes, images, logs) stays. It returns the paths that it removed; an error names what it
// could not.
func (j *Joiner) Reset() ([]string, error) {
	j.identityMu.Lock()
	j.unsaved, j.last = nil, nil
	j.identityMu.Unlock()
	p := j.paths
	patterns := []string{
		j.identityFile(), j.keyFile() + "*", j.recordFile(), j.pendingFile(), j.clock.file,
		j.in(".*.mooring-tmp-*"), // what a killed writer left may hold a key
		p.Kubeconfig, p.Configuration, p.CA, p.Environment, p.Log + "*", p.Process, p.Applied,
		// The kubelet's certificates would be another tenant's after the next join.
		filepath.Join(p.PKI, "kubelet-client-*.pem*"), filepath.Join(p.PKI, "kubelet-server-*.pem"),
		filepath.Join(p.PKI, "kubelet.crt"), filepath.Join(p.PKI, "kubelet.key"),
	}
	var removed []string
	var failed []error
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			failed = append(failed, err)
		}
		for _, path := range paths {
			err := os.Remove(path)
			switch {
			case err == nil:
				removed = append(removed, path)
			case !errors.Is(err, fs.ErrNotExist):
				failed = append(failed, err)
			}
		}
	}
	return removed, errors.Join(failed...)
}
