package relay

import (
	"container/heap"
	"sync"
	"time"
)

// parcel is something to be handed over at a time.
type parcel struct {
	due  time.Time
	seq  uint64
	hand func()
}

// schedule hands parcels over, each at its time, those of one time in their order.
type schedule struct {
	mu     sync.Mutex // guards the following
	parcel parcels
	seq    uint64

	wake chan struct{}
}

func newSchedule() *schedule { return &schedule{wake: make(chan struct{}, 1)} }

func (s *schedule) add(due time.Time, hand func()) {
	s.mu.Lock()
	s.seq++
	heap.Push(&s.parcel, parcel{due, s.seq, hand})
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// next returns what is due, or how long until something is; 0 is for ever.
func (s *schedule) next() (hand func(), wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.parcel) == 0 {
		return nil, 0
	}
	if wait = time.Until(s.parcel[0].due); wait > 0 {
		return nil, wait
	}
	return heap.Pop(&s.parcel).(parcel).hand, 0
}

// run hands over until stop is closed.
func (s *schedule) run(stop <-chan struct{}) {
	for {
		hand, wait := s.next()
		if hand != nil {
			hand()
			continue
		}
		var due <-chan time.Time
		if wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-due:
		case <-s.wake:
		case <-stop:
			return
		}
	}
}

// parcels is a heap by due, then seq.
type parcels []parcel

func (p parcels) Len() int { return len(p) }
func (p parcels) Less(i, j int) bool {
	if !p[i].due.Equal(p[j].due) {
		return p[i].due.Before(p[j].due)
	}
	return p[i].seq < p[j].seq
}
func (p parcels) Swap(i, j int) { p[i], p[j] = p[j], p[i] }
func (p *parcels) Push(x any)   { *p = append(*p, x.(parcel)) }
func (p *parcels) Pop() any {
	old := *p
	x := old[len(old)-1]
	old[len(old)-1] = parcel{}
	*p = old[:len(old)-1]
	return x
}
