// Package image makes container images without a registry: docker-archive files that `ctr images
// import` takes, holding Debian's static busybox and what programs of the tests' own are given.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// Busybox and Pause are the images' names; pods ask for them with imagePullPolicy Never.
const (
	Busybox = "mooring.test/busybox:1"
	Pause   = "mooring.test/pause:1"
)

// file is one entry of the image's only layer.
type file struct {
	name string
	mode int64
	data []byte // nil: a directory
	link string
}

// Write makes both images in one archive. busybox is the path of a static busybox; applets are the
// names by which it is found in the image's PATH. programs are static ones that lie beside it.
func Write(path, busybox string, applets []string, programs ...string) error {
	bin, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	files := []file{
		{name: "bin/", mode: 0o755}, {name: "etc/", mode: 0o755}, {name: "root/", mode: 0o700}, {name: "tmp/", mode: 0o1777},
		{name: "bin/busybox", mode: 0o755, data: bin},
		{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/root:/bin/sh\n")},
		{name: "etc/group", mode: 0o644, data: []byte("root:x:0:\n")},
	}
	for _, a := range applets {
		if a != "busybox" {
			files = append(files, file{name: "bin/" + a, mode: 0o777, link: "busybox"})
		}
	}
	for _, p := range programs {
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		files = append(files, file{name: "bin/" + filepath.Base(p), mode: 0o755, data: data})
	}
	layer, err := tarball(files)
	if err != nil {
		return err
	}
	archive, err := archive(layer)
	if err != nil {
		return err
	}
	temp := path + ".tmp"
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(temp, archive, 0o644); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// archive wraps a layer as the two images, which differ in what they run only.
func archive(layer []byte) ([]byte, error) {
	type entry struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	files := []file{{name: "layer.tar", mode: 0o644, data: layer}}
	var manifest []entry
	for _, img := range []struct {
		name string
		cmd  []string
	}{
		{Busybox, []string{"/bin/sh"}},
		{Pause, []string{"/bin/busybox", "sleep", "2147483647"}}, // its sandbox is ended with SIGKILL, so it need not listen
	} {
		config, err := imageConfig(layer, img.cmd)
		if err != nil {
			return nil, err
		}
		name := digest(config) + ".json"
		files = append(files, file{name: name, mode: 0o644, data: config})
		manifest = append(manifest, entry{name, []string{img.name}, []string{"layer.tar"}})
	}
	data, err := json.Marshal(manifest)
	if err != nil {
		return nil, err
	}
	return tarball(append(files, file{name: "manifest.json", mode: 0o644, data: data}))
}

func imageConfig(layer []byte, cmd []string) ([]byte, error) {
	return json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"created":      time.Unix(0, 0).UTC(),
		"config":       map[string]any{"Cmd": cmd, "Env": []string{"PATH=/bin"}, "WorkingDir": "/"},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	})
}

func tarball(files []file) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0)}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		case f.data == nil:
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		if _, err := io.Copy(w, bytes.NewReader(f.data)); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
