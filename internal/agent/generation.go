package agent

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/mooring-edge/mooring/internal/durable"
)

// generation counts the sessions of this node's identity, on disk: two boxes with the same identity (a
// cloned disk) count apart, and are told apart by it.
type generation struct {
	path   string
	logger *slog.Logger

	mu sync.Mutex // guards last
	// last is the number used last; 0 before the first.
	last uint64
}

func newGeneration(stateDir string, logger *slog.Logger) *generation {
	return &generation{path: filepath.Join(stateDir, "generation"), logger: logger}
}

// next returns a number above all that were used before. A disk that does not take it is logged and does
// not keep the session from being made.
func (g *generation) next() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	if data, err := durable.ReadFile(g.path, 64); err == nil {
		if n, err := strconv.ParseUint(string(bytes.TrimSpace(data)), 10, 63); err == nil {
			g.last = max(g.last, n)
		}
	}
	g.last++
	if err := durable.WriteFile(g.path, append(strconv.AppendUint(nil, g.last, 10), '\n'), 0o600); err != nil {
		g.logger.Warn("the session counter can't be kept on disk", "err", err)
	}
	return g.last
}

// forget begins the count anew, for another identity; it tells whether there was one.
func (g *generation) forget() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = 0
	return os.Remove(g.path) == nil
}
