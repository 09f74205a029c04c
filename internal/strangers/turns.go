package strangers

import (
	"net"
	"net/netip"
	"sync"
)

// Turns has each source's work done by so many at a time, whoever else works: what a burst of one source costs the
// others is a share of the processors, and not a place behind all of it. Safe for concurrent use.
type Turns struct {
	each int

	mu      sync.Mutex // guards the following
	sources map[netip.Prefix]*line
}

// line is where those of one source wait.
type line struct {
	free   chan struct{} // holds one for each that may work
	places int
}

// NewTurns has each source do so many things at a time.
func NewTurns(each int) *Turns {
	return &Turns{each: max(each, 1), sources: map[netip.Prefix]*line{}}
}

// Join takes a place in the line of remote's source. Addresses that are none of IP share one. Leave has to be called.
func (t *Turns) Join(remote net.Addr) *Turn {
	from, _ := sourceOf(remote)
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.sources[from]
	if l == nil {
		l = &line{free: make(chan struct{}, t.each)}
		for range t.each {
			l.free <- struct{}{}
		}
		t.sources[from] = l
	}
	l.places++
	return &Turn{turns: t, from: from, line: l}
}

// Turn is one place. Take and Give are for one goroutine at a time; Leave may be called beside them.
type Turn struct {
	turns *Turns
	from  netip.Prefix
	line  *line

	mu   sync.Mutex // guards the following
	has  bool       // may work
	left bool
}

// Take waits until it may work. It does not once it has left: then nothing bounds it.
func (t *Turn) Take() {
	t.mu.Lock()
	waits := !t.has && !t.left
	t.mu.Unlock()
	if !waits {
		return
	}
	<-t.line.free
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left {
		t.line.free <- struct{}{}
		return
	}
	t.has = true
}

// Give lets the next one work. It does nothing without a turn.
func (t *Turn) Give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.give()
}

func (t *Turn) give() {
	if t.has {
		t.has = false
		t.line.free <- struct{}{}
	}
}

// Leave gives the place back; further calls do nothing.
func (t *Turn) Leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.left {
		return
	}
	t.left = true
	t.give()
	t.turns.mu.Lock()
	defer t.turns.mu.Unlock()
	if t.line.places--; t.line.places == 0 {
		delete(t.turns.sources, t.from)
	}
}
