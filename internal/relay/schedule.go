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

// add has hand called at due. It wakes the one who runs the schedule only if nothing else is due before.
func (s *schedule) add(due time.Time, hand func()) {
	s.mu.Lock()
	s.seq++
	seq := s.seq
	heap.Push(&s.parcel, parcel{due, seq, hand})
	first := s.parcel[0].seq == seq
	s.mu.Unlock()
	if !first {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// next appends to hands what is due, or says how long until something is; 0 is for ever.
func (s *schedule) next(hands []func()) ([]func(), time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(s.parcel) > 0 {
		if wait := s.parcel[0].due.Sub(now); wait > 0 {
			return hands, wait
		}
		hands = append(hands, heap.Pop(&s.parcel).(parcel).hand)
	}
	return hands, 0
}

// run hands over until stop is closed.
func (s *schedule) run(stop <-chan struct{}) {
	var (
		hands []func()
		wait  time.Duration
		timer = time.NewTimer(0)
	)
	defer timer.Stop()
	for {
		hands, wait = s.next(hands[:0])
		for i, hand := range hands {
			hand()
			hands[i] = nil
		}
		if len(hands) > 0 {
			continue
		}
		var due <-chan time.Time
		if wait > 0 {
			timer.Reset(wait)
			due = timer.C
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
