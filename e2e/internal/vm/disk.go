package vm

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Seed is a medium from which cloud-init takes its configuration (its data source NoCloud).
type Seed struct {
	UserData string
	// Hostname and InstanceID are the meta-data: another InstanceID is another machine for cloud-init.
	Hostname, InstanceID string
}

// write makes a FAT image with the label that cloud-init looks for. Only its owner may read it: it holds a secret.
func (s Seed) write(path string) error {
	return writeFAT(path, "CIDATA", map[string]string{
		"user-data": s.UserData,
		"meta-data": fmt.Sprintf("instance-id: %s\nlocal-hostname: %s\n", s.InstanceID, s.Hostname),
	})
}

// writeFAT makes an image of a small medium with these files.
func writeFAT(path, label string, files map[string]string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(path, 1<<20); err != nil {
		return err
	}
	if err := run(nil, "mkfs.vfat", "-n", label, path); err != nil {
		return err
	}
	for name, content := range files {
		if err := run([]byte(content), "mcopy", "-i", path, "-", "::/"+name); err != nil {
			return err
		}
	}
	return nil
}

// newDisk copies an image, as far as it is not zeros, into a disk of that size.
func newDisk(image, disk string, size int64) error {
	if err := copyFile(image, disk); err != nil {
		return err
	}
	st, err := os.Stat(disk)
	if err != nil {
		return err
	}
	if st.Size() > size {
		return fmt.Errorf("%s has %d bytes and does not fit on a disk of %d", image, st.Size(), size)
	}
	return os.Truncate(disk, size)
}

// copyFile is cp: it shares blocks where the file system can, and leaves holes.
func copyFile(from, to string) error {
	return run(nil, "cp", "--sparse=always", "--reflink=auto", "--no-preserve=mode", from, to)
}

func run(stdin []byte, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
