package agent

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const maxLineage = 4 << 10

// lineage is this box's past, on disk: the sessions that it has begun, each with a name of its own. Two boxes
// with one identity (a cloned disk) have the same past up to the day they were parted, and are told apart by
// what came after.
type lineage struct {
	path   string
	write  func(path string, data []byte, perm fs.FileMode) error
	logger *slog.Logger

	mu sync.Mutex // guards the following fields
	// read tells that the disk has been read: from then on memory knows better.
	read bool
	past lineageFile
	// current is the newest instance while no session with it has been accepted; else empty.
	current string
	// onDisk tells whether current is.
	onDisk bool
}

// lineageFile is what is on disk. An older form was the bare generation.
type lineageFile struct {
	Generation uint64 `json:"generation"`
	// Instances, newest first.
	Instances []string `json:"instances"`
	// Accepted is the newest of them that a broker is known to have taken. It stays among them however often
	// the box loses power before its next session: it is what the broker knows the box by.
	Accepted string `json:"accepted,omitempty"`
}

func newLineage(stateDir string, write func(string, []byte, fs.FileMode) error, logger *slog.Logger) *lineage {
	return &lineage{path: filepath.Join(stateDir, "generation"), write: write, logger: logger}
}

// next puts the box's lineage into a hello: a generation above all before, and an instance that is on disk
// before anybody hears of it. A disk that does not take it is told to the broker and does not keep the
// session from being made.
func (l *lineage) next(h *wire.Hello) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.load()
	l.past.Generation++
	if l.current == "" {
		l.current, l.onDisk = newInstance(), false
		l.past.Instances = append([]string{l.current}, l.past.Instances...)
		l.prune()
	}
	if l.save() {
		l.onDisk = true
	}
	h.Generation, h.Instance, h.Ancestors, h.Volatile = l.past.Generation, l.current, slices.Clone(l.past.Instances[1:]), !l.onDisk
}

// accepted says that the broker has taken a session with the current instance: the next has another.
func (l *lineage) accepted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == "" {
		return
	}
	l.past.Accepted, l.current = l.current, ""
	l.save()
}

// superseded says that the broker knows of a box that went on from the current instance. If that was not this
// one, a next instance shows it.
func (l *lineage) superseded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = ""
}

func (l *lineage) save() bool {
	data, err := json.Marshal(l.past)
	if err == nil {
		err = l.write(l.path, append(data, '\n'), 0o600)
	}
	if err != nil {
		l.logger.Warn("the session counter can't be kept on disk", "err", err)
	}
	return err == nil
}

// prune keeps the newest, and the accepted one whatever its age.
func (l *lineage) prune() {
	const most = 1 + wire.MaxAncestors
	if len(l.past.Instances) <= most {
		return
	}
	old := l.past.Instances[most-1:]
	l.past.Instances = l.past.Instances[:most]
	if slices.Contains(old, l.past.Accepted) {
		l.past.Instances[most-1] = l.past.Accepted
	}
}

// load reads the disk, once for each process.
func (l *lineage) load() {
	if l.read {
		return
	}
	data, err := durable.ReadFile(l.path, maxLineage)
	if err == nil {
		l.past, err = parseLineage(data)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.logger.Warn("the box's past sessions are not known any more", "err", err)
	}
	l.read = true
}

func parseLineage(data []byte) (lineageFile, error) {
	if n, err := strconv.ParseUint(string(bytes.TrimSpace(data)), 10, 62); err == nil {
		return lineageFile{Generation: n}, nil
	}
	var f lineageFile
	if err := json.Unmarshal(data, &f); err != nil {
		return lineageFile{}, fmt.Errorf("not a lineage: %w", err)
	}
	if f.Generation >= 1<<62 {
		return lineageFile{}, fmt.Errorf("not a lineage: generation %d", f.Generation)
	}
	if len(f.Instances) > 0 {
		// The wire's own check says whether a broker would take them.
		check := wire.Hello{Instance: f.Instances[0], Ancestors: f.Instances[1:]}
		err := check.Validate()
		if err == nil && check.Instance == "" {
			err = errors.New("an instance without a name")
		}
		if err != nil {
			return lineageFile{}, fmt.Errorf("not a lineage: %w", err)
		}
	}
	if !slices.Contains(f.Instances, f.Accepted) {
		f.Accepted = ""
	}
	return f, nil
}

func newInstance() string {
	b := make([]byte, wire.InstanceLen/2)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(b)
}

// forget begins anew, for another identity; it tells whether there was a past.
func (l *lineage) forget() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.past, l.current, l.read = lineageFile{}, "", true
	return os.Remove(l.path) == nil
}
