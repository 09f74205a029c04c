package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Lease is what keys hang on that are to vanish with whoever wrote them: some time after its process is gone, or is cut off
// from the store. Safe for concurrent use.
type Lease struct {
	s    *Store
	id   clientv3.LeaseID
	lost chan struct{}
	stop context.CancelFunc
}

// Lease begins a lease that is kept alive until Close, the end of the store, or until the store was out of reach for ttl. ttl is
// in whole seconds, 2 at least. ctx bounds the beginning alone.
func (s *Store) Lease(ctx context.Context, ttl time.Duration) (*Lease, error) {
	if ttl < 2*time.Second {
		return nil, fmt.Errorf("store: lease of %s: want 2 s at least", ttl)
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, fmt.Errorf("store: lease: %w", ErrClosed)
	}
	s.watches.Add(1)
	s.mu.Unlock()
	l := &Lease{s: s, lost: make(chan struct{})}
	bounded, cancel := s.bounded(ctx)
	defer cancel()
	granted, err := s.client.Grant(bounded, int64(ttl.Seconds()))
	if err != nil {
		s.watches.Done()
		return nil, fmt.Errorf("store: lease: %w", s.wrap(s.because(bounded, err)))
	}
	l.id = granted.ID
	alive, stop := context.WithCancel(s.closing)
	l.stop = stop
	answers, err := s.client.KeepAlive(alive, l.id)
	if err != nil {
		stop()
		s.watches.Done()
		return nil, fmt.Errorf("store: keep lease: %w", s.wrap(err))
	}
	go func() {
		defer s.watches.Done()
		defer close(l.lost)
		for range answers { // closed when there is no lease any more
		}
	}()
	return l, nil
}

// Lost is closed when the lease is none any more: the keys are gone, or about to go.
func (l *Lease) Lost() <-chan struct{} { return l.lost }

// Close ends the lease, and with it its keys. ctx bounds the wait for that.
func (l *Lease) Close(ctx context.Context) error {
	l.stop()
	<-l.lost
	bounded, cancel := l.s.bounded(ctx)
	defer cancel()
	if _, err := l.s.client.Revoke(bounded, l.id); err != nil && !errors.Is(l.s.wrap(err), ErrClosed) {
		return fmt.Errorf("store: end lease: %w", l.s.because(bounded, err))
	}
	return nil
}

// Leased has the key that op writes vanish with the lease.
func (op Op) Leased(l *Lease) Op {
	op.lease = l.id
	return op
}
