package tunnel

import (
	"slices"
	"sync"
)

// endings are what is to be done when a session has ended: a waiting goroutine for each of ten thousand idle sessions would
// cost more memory than all else that is known of them.
type endings struct {
	mu   sync.Mutex // guards the following
	todo []func()
	over bool
}

// OnEnd has f called once the session has ended (Done is closed then, Err says why), after those that were given later; at
// once if it has ended. f is done before Close returns; it must neither call that nor wait for long.
func (s *Session) OnEnd(f func()) {
	e := &s.endings
	e.mu.Lock()
	if !e.over {
		e.todo = append(e.todo, f)
		e.mu.Unlock()
		return
	}
	e.mu.Unlock()
	f()
}

func (e *endings) run() {
	e.mu.Lock()
	todo := e.todo
	e.todo, e.over = nil, true
	e.mu.Unlock()
	for _, f := range slices.Backward(todo) {
		f()
	}
}
