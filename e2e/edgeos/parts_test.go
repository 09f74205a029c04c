package edgeos

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSteps: a boot's moments are found in its journal, each once, and in time since power-on.
func TestSteps(t *testing.T) {
	var entries []entry
	for _, line := range []string{
		`{"__MONOTONIC_TIMESTAMP":"2000000","MESSAGE":"systemd 257 running in system mode (+PAM)"}`,
		`{"__MONOTONIC_TIMESTAMP":"9000000","MESSAGE":"systemd 257 running in system mode (+PAM)"}`,
		`{"__MONOTONIC_TIMESTAMP":"9500000","MESSAGE":[195,40],"_SYSTEMD_UNIT":"edge-agent.service"}`,
		`{"__MONOTONIC_TIMESTAMP":"10000000","MESSAGE":"Starting","MESSAGE_ID":"` + unitStarting + `","UNIT":"cloud-init-local.service"}`,
		`{"__MONOTONIC_TIMESTAMP":"12000000","MESSAGE":"Finished","MESSAGE_ID":"` + unitStarted + `","UNIT":"cloud-init-local.service"}`,
		`{"__MONOTONIC_TIMESTAMP":"20000000","MESSAGE":"Starting","MESSAGE_ID":"` + unitStarting + `","UNIT":"edge-agent.service"}`,
		`{"__MONOTONIC_TIMESTAMP":"22000000","MESSAGE":"level=INFO msg=\"enrolled; the node's ...\"","_SYSTEMD_UNIT":"edge-agent.service"}`,
		`{"__MONOTONIC_TIMESTAMP":"23500000","MESSAGE":"Started","MESSAGE_ID":"` + unitStarted + `","UNIT":"kubelet.service"}`,
		`{"__MONOTONIC_TIMESTAMP":"29000000","MESSAGE":"Started","MESSAGE_ID":"` + unitStarted + `","UNIT":"kubelet.service"}`,
	} {
		e, err := parseEntry(line)
		must(t, err)
		entries = append(entries, e)
	}
	var got []string
	all := steps(entries, 5*time.Second)
	for _, s := range all {
		got = append(got, fmt.Sprintf("%s %v", s.name, s.at))
	}
	want := "kernel 5s, initrd 7s, root 14s, cloud-init-local starts 15s, cloud-init-local done 17s, agent starts 25s, enrolled 27s, kubelet starts 28.5s"
	if strings.Join(got, ", ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, ", "), want)
	}
	if took := find(t, all, kubeletStarts) - find(t, all, agentStarts); took != 3500*time.Millisecond {
		t.Errorf("the agent's part is %s", took)
	}
	for _, bad := range []string{"", "{", `{"MESSAGE":"no time"}`} {
		if _, err := parseEntry(bad); err == nil {
			t.Errorf("%q was taken for a line of a journal", bad)
		}
	}
}

// TestFlipped: one bit of the root differs, and where the checksums are made to fit they do.
func TestFlipped(t *testing.T) {
	i := &images{dir: t.TempDir()}
	must(t, os.MkdirAll(i.update("4"), 0o755))
	root := bytes.Repeat([]byte("root"), 1000)
	const name = "edge-os_4_0001.root"
	sums := fmt.Sprintf("%x *edge-os_4.efi\n%x  %s\n", sha256.Sum256(nil), sha256.Sum256(root), name)
	for file, content := range map[string][]byte{name: root, "edge-os_4.efi": nil, "SHA256SUMS": []byte(sums)} {
		must(t, os.WriteFile(filepath.Join(i.update("4"), file), content, 0o644))
	}
	for _, as := range []string{"flipped", "resummed"} {
		must(t, i.flipped("4", as, as == "resummed"))
		changed, err := os.ReadFile(filepath.Join(i.update(as), name))
		must(t, err)
		differ := 0
		for n := range root {
			if root[n] != changed[n] {
				differ++
			}
		}
		if len(changed) != len(root) || differ != 1 {
			t.Errorf("%s: %d bytes differ", as, differ)
		}
		got, err := os.ReadFile(filepath.Join(i.update(as), "SHA256SUMS"))
		must(t, err)
		if fits := strings.Contains(string(got), fmt.Sprintf("%x  %s", sha256.Sum256(changed), name)); fits != (as == "resummed") {
			t.Errorf("%s: the checksum fits: %v\n%s", as, fits, got)
		}
		if !strings.HasPrefix(string(got), sums[:70]) {
			t.Errorf("%s: another line has changed:\n%s", as, got)
		}
	}
	if err := resumRoot(i.update("4"), "edge-os_4.efi.other"); err == nil {
		t.Error("a checksum was corrected of a file that there is not")
	}
}

// TestFindRoot: the slot that holds a root is found by its content, and one that two hold is not.
func TestFindRoot(t *testing.T) {
	dir := t.TempDir()
	disk, root := filepath.Join(dir, "disk"), filepath.Join(dir, "root")
	data := make([]byte, 8<<20)
	header := data[512:]
	copy(header, "EFI PART")
	binary.LittleEndian.PutUint64(header[72:], 2)
	binary.LittleEndian.PutUint32(header[80:], 4)
	binary.LittleEndian.PutUint32(header[84:], 128)
	for n := range uint64(2) { // at 2 and at 4 MiB
		e := data[1024+128*n:]
		e[0] = 1
		binary.LittleEndian.PutUint64(e[32:], 4096*(n+1))
		binary.LittleEndian.PutUint64(e[40:], 4096*(n+2)-1)
	}
	content := bytes.Repeat([]byte("new"), 1<<19)
	copy(data[4<<20:], content)
	must(t, os.WriteFile(root, content, 0o644))
	must(t, os.WriteFile(disk, data, 0o644))
	offset, err := findRoot(disk, root)
	if err != nil || offset != 4<<20 {
		t.Errorf("found at %d, %v", offset, err)
	}
	must(t, flip(disk, offset+100))
	if _, err := findRoot(disk, root); err == nil {
		t.Error("it was found after a bit has changed")
	}
	must(t, flip(disk, offset+100))
	copy(data[2<<20:], content)
	must(t, os.WriteFile(disk, data, 0o644))
	if _, err := findRoot(disk, root); err == nil {
		t.Error("it was found though two slots hold it")
	}
}
