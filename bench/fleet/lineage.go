package main

import (
	"crypto/rand"
	"encoding/hex"
	"sync"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// lineage is a node's past sessions, as the agent keeps them (internal/agent), but in memory.
type lineage struct {
	mu         sync.Mutex // guards the following
	generation uint64
	instances  []string // newest first
	current    bool     // the newest was not accepted yet
}

// next puts the lineage into a hello.
func (l *lineage) next(h *wire.Hello) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.generation++
	if !l.current {
		b := make([]byte, wire.InstanceLen/2)
		rand.Read(b)
		l.instances = append([]string{hex.EncodeToString(b)}, l.instances...)
		l.instances = l.instances[:min(len(l.instances), 1+wire.MaxAncestors)]
		l.current = true
	}
	h.Generation, h.Instance = l.generation, l.instances[0]
	h.Ancestors = append([]string(nil), l.instances[1:]...)
}

// accepted says that the broker has taken a session with the newest instance.
func (l *lineage) accepted() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = false
}
