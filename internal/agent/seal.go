package agent

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/pkg/join"
)

// maxSealed is the size up to which files are looked into: user-data is far smaller.
const maxSealed = 64 << 20

// credstoreBundle is where systemd finds the credential of edge-agent.service if nobody else hands it in.
const credstoreBundle = "/etc/credstore/" + credentialName

// cloudInitPlaces are where cloud-init keeps what it was given, and what it made of it. Patterns; directories with all in them.
var cloudInitPlaces = []string{"/var/lib/cloud", "/run/cloud-init", "/var/log/cloud-init*"}

// sealer takes one token's secret off the disk.
type sealer struct {
	tokenID string
	said    []string
	failed  []error
}

// Seal takes the secret of the token that let this box in off its disk: the join bundle that holds it is removed, and in what
// cloud-init keeps of its user-data it is overwritten in its place, so that cloud-init finds all else as it was. root is put
// before the paths that are not configured; empty = none. It returns what it did, line by line; run again, it does the rest.
//
// It knows the secret by the token's name, which the identity on disk has: a bundle with another token, which lets a
// node in again that was removed, is left alone. It is an error if the box is not enrolled, or not yet on disk.
func Seal(cfg *config.Agent, root string) ([]string, error) {
	joiner := join.New(join.Config{StateDir: cfg.StateDir, Kubelet: join.Kubelet{RootDir: cfg.Kubelet.RootDir}})
	id, err := joiner.LoadIdentity()
	if err != nil {
		return nil, fmt.Errorf("nothing sealed: %w; the secret is needed until the box is enrolled", err)
	}
	if enrollapi.ValidTokenID(id.TokenID) != nil {
		return []string{"nothing to seal: the identity names no token"}, nil
	}
	s := &sealer{tokenID: id.TokenID}
	for _, path := range []string{cfg.JoinFile, filepath.Join(root, credstoreBundle)} {
		s.bundle(path)
	}
	for _, pattern := range cloudInitPlaces {
		paths, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, path := range paths {
			s.tree(path)
		}
	}
	if len(s.said) == 0 && len(s.failed) == 0 {
		s.said = append(s.said, "nothing to seal: the token that let this box in is not on its disk")
	}
	return s.said, errors.Join(s.failed...)
}

func (s *sealer) say(format string, args ...any) {
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

// bundle removes a join bundle of the token.
func (s *sealer) bundle(path string) {
	b, err := config.LoadJoinBundle(path)
	if config.IsAbsent(err) {
		return
	}
	if err != nil {
		s.failed = append(s.failed, fmt.Errorf("left %s alone, which can't be read as a join bundle: %w", path, err))
		return
	}
	if token, err := enrollapi.ParseToken(b.Token); err != nil || token.ID != s.tokenID {
		s.say("left %s alone: its token is not the one that let this box in", path)
		return
	}
	// What is unlinked stays in the file system's free blocks for long.
	if _, err := s.blank(path); err != nil {
		s.failed = append(s.failed, err)
	}
	s.remove(path)
}

// tree looks at a file, or at all files below a directory. It follows no links.
func (s *sealer) tree(path string) {
	err := filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // cloud-init, or logrotate, was quicker
		case err != nil:
			s.failed = append(s.failed, err)
		case e.Type().IsRegular():
			s.file(path)
		}
		return nil
	})
	if err != nil {
		s.failed = append(s.failed, err)
	}
}

func (s *sealer) file(path string) {
	encoded, err := s.blank(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		s.failed = append(s.failed, err)
	case !encoded:
	case strings.Contains(path, "/seed/"):
		// Without its seed cloud-init would take the box for another one.
		s.failed = append(s.failed, fmt.Errorf("%s holds the token, compressed or in base64: take it out by hand", path))
	default:
		s.remove(path) // cloud-init makes it anew from its source
	}
}

// blank overwrites the token's secret wherever it stands in a file: byte for byte, so that nothing around it moves (one of
// the files is a Python pickle), and that a power cut leaves no other file than before or after. It tells whether the
// file holds the token in a form in which that can't be done.
func (s *sealer) blank(path string) (encoded bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSealed))
	if err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	blanked := false
	for _, at := range secrets(data, s.tokenID) {
		none := []byte(enrollapi.OverwrittenSecret)
		if bytes.Equal(data[at:at+len(none)], none) {
			continue
		}
		if _, err := f.WriteAt(none, int64(at)); err != nil {
			return false, fmt.Errorf("overwrite the token's secret in %s: %w", path, err)
		}
		blanked = true
	}
	if blanked {
		if err := f.Sync(); err != nil {
			return false, fmt.Errorf("overwrite the token's secret in %s: %w", path, err)
		}
		s.say("overwrote the token's secret in %s", path)
	}
	return holdsEncoded(data, s.tokenID), nil
}

func (s *sealer) remove(path string) {
	err := durable.Remove(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.failed = append(s.failed, fmt.Errorf("remove %s: %w", path, err))
		return
	}
	s.say("removed %s", path)
}

// secrets returns where in data secrets of the token begin.
func secrets(data []byte, tokenID string) (at []int) {
	name := []byte(tokenID + ".")
	for from := 0; ; {
		i := bytes.Index(data[from:], name)
		if i < 0 {
			return at
		}
		from += i + len(name)
		if end := from + enrollapi.TokenSecretLen; end <= len(data) {
			if _, err := enrollapi.ParseToken(tokenID + "." + string(data[from:end])); err == nil {
				at = append(at, from)
			}
		}
	}
}

// holdsEncoded tells whether data holds the token in base64 (also broken into lines), or compressed by gzip: user-data
// may be either, and encoded parts of files as well.
func holdsEncoded(data []byte, tokenID string) bool {
	joined := bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\r' {
			return -1
		}
		return r
	}, data)
	for _, text := range inBase64(tokenID + ".") {
		if bytes.Contains(joined, text) {
			return true
		}
	}
	for rest := data; ; {
		i := bytes.Index(rest, []byte{0x1f, 0x8b, 8})
		if i < 0 {
			return false
		}
		if r, err := gzip.NewReader(bytes.NewReader(rest[i:])); err == nil {
			plain, _ := io.ReadAll(io.LimitReader(r, maxSealed)) // what comes after its end is no gzip
			if len(secrets(plain, tokenID)) > 0 {
				return true
			}
		}
		rest = rest[i+1:]
	}
}

// inBase64 returns what a text looks like within base64, for the three places in a group of bytes at which it may begin.
func inBase64(text string) (out [][]byte) {
	for before := range 3 {
		enc := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("\x00", before) + text))
		// The first characters hold bits of what comes before, the last one bits of what comes after.
		first := (before*8 + 5) / 6
		last := (before + len(text)) * 8 / 6
		out = append(out, []byte(enc[first:last]))
	}
	return out
}
