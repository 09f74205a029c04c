// Package store keeps the broker's state: a small ordered map from keys to
// values with revisions, atomic commits and gapless watches. It is etcd,
// embedded in the process or a cluster elsewhere, and the only package that knows so.
//
// The embedded server has one member and no listeners at all: no TCP port, no
// unix socket, nothing for another process to talk to. Calls go to it directly.
//
// A Commit that returned nil has been synced to disk; kill -9 and power loss
// leave all of it. Keys are text like "/mooring/tenants/acme"; what the values
// mean is the callers' business.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
)

// Errors, for errors.Is.
var (
	// ErrNotFound says that there is no such key.
	ErrNotFound = errors.New("not found")
	// ErrConflict says that a condition of a Commit did not hold: somebody else
	// was first. Nothing was written; read again and decide again.
	ErrConflict = errors.New("conflict")
	// ErrLocked says that another process has the directory open.
	ErrLocked = errors.New("in use by another process")
	// ErrCorrupt says that the files are damaged beyond what the server repairs
	// by itself (a torn end of its log is repaired silently). The directory must
	// be restored from a backup. The process should end: what the failed start
	// opened stays open.
	ErrCorrupt = errors.New("files are damaged")
	// ErrFull says that the quota of 1 GiB is used up. Deletions still work, and
	// the next Open gives their space back.
	ErrFull = errors.New("quota used up")
	// ErrClosed says that the store was closed, or stopped by itself.
	ErrClosed = errors.New("store is closed")
)

// Config says where the store is.
type Config struct {
	// Dir holds the files; made (0700) if absent. Any length of path will do.
	Dir string
	// Cluster takes the place of the files in Dir, if not nil.
	Cluster *Cluster
	// Logger gets progress of the start and the server's warnings. nil = none.
	Logger *slog.Logger

	quota int64 // bytes; tests set it, 0 = quotaBytes
}

// Store is an open store. Safe for concurrent use.
type Store struct {
	etcd    *embed.Etcd // nil with a cluster
	cluster string      // where that is; empty without
	client  *clientv3.Client
	log     *slog.Logger
	unlock  func()

	closing   context.Context // done from the beginning of Close on
	cancel    context.CancelFunc
	watches   sync.WaitGroup
	mu        sync.Mutex // guards closed, and watches.Add against Close
	closed    bool
	closeOnce sync.Once
}

// Item is one key with its value. Rev is the revision of the store at which
// the item was last written: always above zero, and rising with each write.
type Item struct {
	Key   string
	Value []byte
	Rev   int64
}

// Open starts the server on the files in cfg.Dir and waits until it serves,
// some 100 ms with a small store; or waits until cfg.Cluster answers. ctx bounds the start alone; the store runs
// until Close. Errors are ErrLocked, ErrCorrupt, ctx's, or the file system's.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if cfg.Cluster != nil {
		return openCluster(ctx, cfg, log)
	}
	if cfg.quota == 0 {
		cfg.quota = quotaBytes
	}
	unlock, err := prepare(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", cfg.Dir, err)
	}
	srv, err := start(ctx, cfg, log)
	if err != nil {
		unlock()
		return nil, fmt.Errorf("open store %s: %w", cfg.Dir, err)
	}
	s := &Store{etcd: srv, client: v3client.New(srv.Server), log: log, unlock: unlock}
	s.closing, s.cancel = context.WithCancel(context.Background())
	if err := errors.Join(finish(cfg.Dir), s.makeRoom(ctx)); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", cfg.Dir, err), s.Close())
	}
	return s, nil
}

// makeRoom undoes the write stop that a full quota left behind: history and
// unused space go, and if that was not enough the next write is refused again.
func (s *Store) makeRoom(ctx context.Context) error {
	alarms, err := s.client.AlarmList(ctx)
	if err != nil || len(alarms.Alarms) == 0 {
		return s.wrap(err)
	}
	s.log.Warn("store: the quota was used up, making room", "alarms", len(alarms.Alarms))
	now, err := s.client.Get(ctx, "/", clientv3.WithCountOnly()) // for its revision
	if err != nil {
		return s.wrap(err)
	}
	if _, err := s.client.Compact(ctx, now.Header.GetRevision(), clientv3.WithCompactPhysical()); err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compact: %w", s.wrap(err))
	}
	if err := s.etcd.Server.Backend().Defrag(); err != nil {
		return fmt.Errorf("defragment: %w", err)
	}
	if _, err := s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		return fmt.Errorf("lift the write stop: %w", s.wrap(err))
	}
	return nil
}

// Close ends all watches, stops the server and releases the directory. Calls
// in flight end with ErrClosed or complete. It may be called more than once.
func (s *Store) Close() error {
	var err error
	s.closeOnce.Do(func() {
		s.mu.Lock()
		s.closed = true
		s.mu.Unlock()
		s.cancel()
		s.watches.Wait()
		if cerr := s.client.Close(); cerr != nil && !errors.Is(cerr, context.Canceled) {
			err = fmt.Errorf("close store: %w", cerr)
		}
		if s.etcd != nil {
			s.etcd.Close()
		}
		s.unlock()
	})
	return err
}

// Done is closed when the store serves no more: after Close, or because the
// embedded server stopped by itself.
func (s *Store) Done() <-chan struct{} {
	if s.etcd == nil {
		return s.closing.Done()
	}
	return s.etcd.Server.StopNotify()
}

// Get returns the item at key, or ErrNotFound.
func (s *Store) Get(ctx context.Context, key string) (Item, error) {
	if s.closing.Err() != nil {
		return Item{}, fmt.Errorf("store: get %s: %w", key, ErrClosed)
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	resp, err := s.client.Get(ctx, key)
	if err != nil {
		return Item{}, fmt.Errorf("store: get %s: %w", key, s.wrap(s.because(ctx, err)))
	}
	if len(resp.Kvs) == 0 {
		return Item{}, fmt.Errorf("store: get %s: %w", key, ErrNotFound)
	}
	kv := resp.Kvs[0]
	return Item{Key: key, Value: kv.GetValue(), Rev: kv.GetModRevision()}, nil
}

// List returns all items whose keys begin with prefix, by key, as they were at
// one moment. None is no error.
func (s *Store) List(ctx context.Context, prefix string) ([]Item, error) {
	items, _, err := s.list(ctx, prefix)
	return items, err
}

// list also returns the revision of the store that the items are from.
func (s *Store) list(ctx context.Context, prefix string) ([]Item, int64, error) {
	if prefix == "" {
		return nil, 0, errors.New("store: list: empty prefix")
	}
	if s.closing.Err() != nil {
		return nil, 0, fmt.Errorf("store: list %s: %w", prefix, ErrClosed)
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	resp, err := s.client.Get(ctx, prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, fmt.Errorf("store: list %s: %w", prefix, s.wrap(s.because(ctx, err)))
	}
	items := make([]Item, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		items = append(items, Item{Key: string(kv.GetKey()), Value: kv.GetValue(), Rev: kv.GetModRevision()})
	}
	return items, resp.Header.GetRevision(), nil
}

// wrap turns the server's errors into this package's.
func (s *Store) wrap(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrNoSpace), errors.Is(err, etcderrors.ErrNoSpace):
		return fmt.Errorf("%w; delete what is not needed and restart the broker", ErrFull)
	case s.closing.Err() != nil, errors.Is(err, rpctypes.ErrStopped), errors.Is(err, etcderrors.ErrStopped),
		strings.Contains(err.Error(), rpctypes.ErrStopped.Error()):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return err
}
