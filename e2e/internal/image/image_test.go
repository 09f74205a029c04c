package image

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestArchive reads the archive back as a container runtime does: every name that one file gives for
// another has to be there, and every digest has to be right.
func TestArchive(t *testing.T) {
	dir := t.TempDir()
	busybox := filepath.Join(dir, "busybox")
	if err := os.WriteFile(busybox, []byte("not really"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "images.tar")
	if err := Write(path, busybox, []string{"busybox", "sh", "cat"}); err != nil {
		t.Fatal(err)
	}
	files := untar(t, path)
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	var tags []string
	for _, m := range manifest {
		tags = append(tags, m.RepoTags...)
		var config struct {
			Rootfs struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
		if err := json.Unmarshal(files[m.Config], &config); err != nil {
			t.Fatalf("config %s of %s: %v", m.Config, m.RepoTags, err)
		}
		if m.Config != digest(files[m.Config])+".json" {
			t.Errorf("config %s is not named by its digest", m.Config)
		}
		if len(m.Layers) != 1 || len(config.Rootfs.DiffIDs) != 1 {
			t.Fatalf("layers %v, diff_ids %v: want one each", m.Layers, config.Rootfs.DiffIDs)
		}
		if want := "sha256:" + digest(files[m.Layers[0]]); config.Rootfs.DiffIDs[0] != want {
			t.Errorf("diff_id %s, the layer's is %s", config.Rootfs.DiffIDs[0], want)
		}
	}
	if len(tags) != 2 || tags[0] != Busybox || tags[1] != Pause {
		t.Errorf("images %q", tags)
	}
	layer := filepath.Join(dir, "layer.tar")
	if err := os.WriteFile(layer, files["layer.tar"], 0o644); err != nil {
		t.Fatal(err)
	}
	content := untar(t, layer)
	if string(content["bin/busybox"]) != "not really" {
		t.Errorf("the layer's busybox holds %q", content["bin/busybox"])
	}
	for _, name := range []string{"bin/sh", "bin/cat", "tmp/", "etc/passwd"} {
		if _, ok := content[name]; !ok {
			t.Errorf("the layer has no %s", name)
		}
	}
}

func untar(t *testing.T, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}
