package enroll

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// Each of these a second, and so many at once, is more than any box needs, and little for the store and the audit log,
	// which keep something of each request of a key that is valid.
	keyPace  = rate.Limit(1)
	keyBurst = 60
	// maxPaced bounds the keys that are remembered. Beyond, all begin anew: keys of strangers cost nothing but that.
	maxPaced = 10_000
)

// ErrTooOften says that one key asks for more than any box needs; it may ask again later.
var ErrTooOften = errors.New("the box asks too often")

// pacer bounds how often one key is served, so that a box in wrong hands fills nobody's disk. The zero value is ready.
type pacer struct {
	mu   sync.Mutex
	keys map[string]*rate.Limiter // guarded by mu
}

// allow tells whether the key is to be served now.
func (p *pacer) allow(key string, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.keys[key]
	if l == nil {
		if p.keys == nil || len(p.keys) >= maxPaced {
			p.keys = map[string]*rate.Limiter{}
		}
		l = rate.NewLimiter(keyPace, keyBurst)
		p.keys[key] = l
	}
	return l.AllowN(now, 1)
}
