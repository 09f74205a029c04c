package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// dir is a directory of an image.
type dir struct {
	path  string
	mode  int64
	owner int
}

// file is a file of an image, root's.
type file struct {
	path string
	mode int64
	data []byte
}

// reference is the image's whole name.
func (p product) reference(o options) string { return o.registry + "/" + p.name + ":" + o.version }

// index is one image for each binary.
func (p product) index(o options, built []binary) (v1.ImageIndex, error) {
	index := v1.ImageIndex(empty.Index)
	for _, b := range built {
		img, err := p.image(o, b)
		if err != nil {
			return nil, err
		}
		platform := b.platform
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &platform}})
	}
	return mutate.Annotations(index, p.labels(o)).(v1.ImageIndex), nil
}

// image has two layers: what all images of all versions share, and the program. There is no shell in it, and no
// package manager, and nothing that could be started but the program.
func (p product) image(o options, b binary) (v1.Image, error) {
	base, err := p.base()
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(b.path)
	if err != nil {
		return nil, err
	}
	license, err := licenseOf(o.root)
	if err != nil {
		return nil, err
	}
	top, err := layer(o.created, []dir{{"usr", 0o755, 0}, {"usr/bin", 0o755, 0}, {"usr/share", 0o755, 0}, {"usr/share/licenses", 0o755, 0}}, []file{
		{"usr/bin/" + p.program, 0o755, program}, {"usr/share/licenses/LICENSE", 0o644, license},
	})
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, p.addendum(o, base, "base"), p.addendum(o, top, "program"))
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = b.platform.OS, b.platform.Architecture, b.platform.Variant
	config.Created = v1.Time{Time: o.created}
	config.Config = v1.Config{
		User: p.user, Entrypoint: []string{"/usr/bin/" + p.program}, Cmd: p.args, WorkingDir: "/",
		Env: []string{"PATH=/usr/bin"}, Labels: p.labels(o),
	}
	return mutate.ConfigFile(img, config)
}

func (p product) addendum(o options, l v1.Layer, what string) mutate.Addendum {
	return mutate.Addendum{Layer: l, MediaType: types.OCILayer, History: v1.History{Created: v1.Time{Time: o.created}, CreatedBy: "packaging/oci: " + what}}
}

// base has the directories, the user's name and the root certificates. Its times are 1970's, so that it is the same
// for each version, and a machine fetches it once.
func (p product) base() (v1.Layer, error) {
	certificates, err := roots()
	if err != nil {
		return nil, err
	}
	dirs := []dir{
		{"etc", 0o755, 0}, {"etc/ssl", 0o755, 0}, {"etc/ssl/certs", 0o755, 0}, {"run", 0o755, 0}, {"tmp", 0o1777, 0},
		{"var", 0o755, 0}, {"var/lib", 0o755, 0},
	}
	return layer(time.Unix(0, 0).UTC(), append(dirs, p.dirs...), []file{
		{"etc/passwd", 0o644, fmt.Appendf(nil, "root:x:0:0:root:/:/none\nmooring:x:%[1]d:%[1]d:mooring:/:/none\n", brokerUser)},
		{"etc/group", 0o644, fmt.Appendf(nil, "root:x:0:\nmooring:x:%d:\n", brokerUser)},
		{rootsPath, 0o644, certificates},
	})
}

// labels are OCI's own annotations.
func (p product) labels(o options) map[string]string {
	l := map[string]string{
		"org.opencontainers.image.title":       p.title,
		"org.opencontainers.image.description": p.description,
		"org.opencontainers.image.version":     o.version,
		"org.opencontainers.image.created":     o.created.Format(time.RFC3339),
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.source":      "https://github.com/mooring-edge/mooring",
	}
	if o.revision != "" {
		l["org.opencontainers.image.revision"] = o.revision
	}
	return l
}

// layer is a gzipped tar with its entries in the order given.
func layer(when time.Time, dirs []dir, files []file) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	made := map[string]bool{".": true}
	add := func(h *tar.Header, data []byte) error {
		if parent := path.Dir(strings.TrimSuffix(h.Name, "/")); !made[parent] {
			return fmt.Errorf("%s: no entry for its directory", h.Name)
		}
		h.ModTime, h.Format = when, tar.FormatUSTAR
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		_, err := w.Write(data)
		return err
	}
	for _, d := range dirs {
		if err := add(&tar.Header{Typeflag: tar.TypeDir, Name: d.path + "/", Mode: d.mode, Uid: d.owner, Gid: d.owner}, nil); err != nil {
			return nil, err
		}
		made[d.path] = true
	}
	for _, f := range files {
		if err := add(&tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: f.mode, Size: int64(len(f.data))}, f.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressedCaching)
}
