package main

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// source writes a program and the licence, with a time and a mode that must not be seen in the image.
func source(t *testing.T, when time.Time, mode os.FileMode) (root string, built []binary) {
	t.Helper()
	root = t.TempDir()
	for _, name := range []string{"LICENSE", "program"} {
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, []byte("the "+name+"\n"), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []v1.Platform{amd64, arm64, armv7} {
		built = append(built, binary{p, filepath.Join(root, "program")})
	}
	return root, built
}

func written(t *testing.T, p product, when time.Time, mode os.FileMode) (path string, o options) {
	t.Helper()
	root, built := source(t, when, mode)
	o = options{root: root, registry: "registry.example/mooring", version: "v1.2.3", revision: "0123abcd", created: time.Unix(1_700_000_000, 0).UTC()}
	index, err := p.index(o, built)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "image.tar")
	if err := writeArchive(path, index, p.reference(o), o); err != nil {
		t.Fatal(err)
	}
	return path, o
}

// TestSameBytes: neither when, nor where, nor from inputs of which time and mode an archive was made is seen in it. (Seen
// failing with time.Now in tarDir, and with the program's own mode, and its own time, in its layer.)
func TestSameBytes(t *testing.T) {
	for _, p := range products {
		first, _ := written(t, p, time.Unix(1_000_000_000, 0), 0o755)
		var second string
		synctest.Test(t, func(*testing.T) { // in another year
			second, _ = written(t, p, time.Unix(1_600_000_000, 0), 0o600)
		})
		a, err := os.ReadFile(first)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(second)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s: two archives of the same input differ (%d and %d bytes)", p.name, len(a), len(b))
		}
	}
}

// TestArchive reads an archive back, and has every digest in it checked.
func TestArchive(t *testing.T) {
	for _, p := range products {
		t.Run(p.name, func(t *testing.T) {
			path, o := written(t, p, time.Now(), 0o755)
			dir := t.TempDir()
			unpack(t, path, dir)
			l, err := layout.FromPath(dir)
			if err != nil {
				t.Fatal(err)
			}
			top, err := l.ImageIndex()
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Index(top); err != nil {
				t.Error(err)
			}
			m, err := top.IndexManifest()
			if err != nil || len(m.Manifests) != 1 {
				t.Fatalf("%v, %v: want one image", m, err)
			}
			if got, want := m.Manifests[0].Annotations["io.containerd.image.name"], "registry.example/mooring/"+p.name+":v1.2.3"; got != want {
				t.Errorf("its name is %q, want %q", got, want)
			}
			index, err := top.ImageIndex(m.Manifests[0].Digest)
			if err != nil {
				t.Fatal(err)
			}
			images, err := index.IndexManifest()
			if err != nil || len(images.Manifests) != 3 {
				t.Fatalf("%v, %v: want three platforms", images, err)
			}
			for i, want := range []v1.Platform{amd64, arm64, armv7} {
				d := images.Manifests[i]
				if d.Platform == nil || !d.Platform.Equals(want) {
					t.Errorf("platform %v, want %v", d.Platform, want)
				}
				img, err := index.Image(d.Digest)
				if err != nil {
					t.Fatal(err)
				}
				look(t, p, o, img, want)
			}
		})
	}
}

// look checks one image's configuration and content.
func look(t *testing.T, p product, o options, img v1.Image, platform v1.Platform) {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.Architecture != platform.Architecture || c.Variant != platform.Variant || !c.Created.Equal(o.created) || c.Config.User != p.user ||
		!slices.Equal(c.Config.Entrypoint, []string{"/usr/bin/" + p.program}) || !slices.Equal(c.Config.Cmd, p.args) {
		t.Errorf("%+v", c)
	}
	for key, want := range map[string]string{"org.opencontainers.image.version": "v1.2.3", "org.opencontainers.image.revision": "0123abcd"} {
		if got := c.Config.Labels[key]; got != want {
			t.Errorf("label %s is %q, want %q", key, got, want)
		}
	}
	content := mutate.Extract(img)
	defer content.Close()
	var programs []string
	found := entries(t, content)
	for name, e := range found {
		if e.Typeflag == tar.TypeReg && e.Mode&0o111 != 0 {
			programs = append(programs, name)
		}
		if e.Typeflag != tar.TypeReg && e.Typeflag != tar.TypeDir {
			t.Errorf("%s is neither a file nor a directory", name)
		}
		if strings.HasPrefix(name, "usr/bin/") && e.Uid != 0 {
			t.Errorf("%s is user %d's", name, e.Uid)
		}
	}
	if !slices.Equal(programs, []string{"usr/bin/" + p.program}) {
		t.Errorf("programs %q: want the product's alone, no shell", programs)
	}
	for _, d := range p.dirs {
		if e := found[d.path]; e == nil || e.Mode&0o7777 != d.mode || e.Uid != d.owner {
			t.Errorf("directory %s: %+v", d.path, e)
		}
	}
	pool := x509.NewCertPool()
	if e := found[rootsPath]; e == nil || !pool.AppendCertsFromPEM(e.data) {
		t.Errorf("no root certificates at %s", rootsPath)
	}
}

type entry struct {
	*tar.Header
	data []byte
}

func entries(t *testing.T, r io.Reader) map[string]*entry {
	t.Helper()
	all := map[string]*entry{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(h.Name, "/")] = &entry{h, data}
	}
}

func unpack(t *testing.T, path, dir string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := entries(t, f)
	for name, e := range all {
		if e.Typeflag == tar.TypeDir {
			continue
		}
		out := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(out, e.data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestUsage: what can't be made is said, and nothing is.
func TestUsage(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "")
	for want, args := range map[string][]string{
		"--version is required":                {"--epoch", "1"},
		"want seconds since 1970":              {"--version", "v1", "--epoch", "yesterday"},
		"want edge-broker or edge-agent":       {"--version", "v1", "--epoch", "1", "--only", "broker"},
		`edge-broker is not made for "plan9/"`: {"--version", "v1", "--epoch", "1", "--only", "edge-broker", "--platform", "plan9/"},
	} {
		if err := run(t.Context(), args); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
}
