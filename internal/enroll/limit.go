package enroll

import "sync"

// limiter bounds what is at work at once, for each key by itself.
type limiter struct {
	mu   sync.Mutex
	busy map[string]int // guarded by mu; no zeros
}

// enter takes a place if fewer than limit are taken. Call leave once, exactly if ok.
func (l *limiter) enter(key string, limit int) (leave func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy[key] >= limit {
		return nil, false
	}
	l.busy[key]++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.busy[key]--; l.busy[key] == 0 {
			delete(l.busy, key)
		}
	}, true
}
