package store

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Op is one part of a Commit: a condition, a change, or both. Make it with
// Create, Replace, Put, Delete or Check.
type Op struct {
	key     string
	val     []byte
	rev     int64 // the revision the key must have, 0 = absent
	cond    bool  // rev counts
	write   bool
	remove  bool
	lease   clientv3.LeaseID // 0: none
	problem string
}

// Create writes a key that must be absent.
func Create(key string, val []byte) Op { return Op{key: key, val: val, cond: true, write: true} }

// Replace writes a key that must still have the revision rev (0 = be absent).
func Replace(key string, val []byte, rev int64) Op {
	return Op{key: key, val: val, rev: rev, cond: true, write: true}
}

// Put writes a key, whatever was there.
func Put(key string, val []byte) Op { return Op{key: key, val: val, write: true} }

// Delete removes a key that must still have the revision rev, above 0.
func Delete(key string, rev int64) Op {
	op := Op{key: key, rev: rev, cond: true, remove: true}
	if rev == 0 {
		op.problem = "delete needs the item's revision, got 0"
	}
	return op
}

// Check changes nothing and demands that the key still has the revision rev
// (0 = be absent).
func Check(key string, rev int64) Op { return Op{key: key, rev: rev, cond: true} }

// Commit applies all ops at once if all their conditions hold, else none of
// them, and returns ErrConflict. A key may be written by one op only; at most
// 128 ops, 1.5 MiB in all.
//
// An error that is not ErrConflict, ErrFull or about the ops themselves (ctx
// ended, store closed) leaves open whether the ops were applied: read again.
func (s *Store) Commit(ctx context.Context, ops ...Op) error {
	txn, err := compile(ops)
	if err != nil {
		return fmt.Errorf("store: commit: %w", err)
	}
	if s.closing.Err() != nil {
		return fmt.Errorf("store: commit: %w", ErrClosed)
	}
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	resp, err := s.client.Txn(ctx).If(txn.conds...).Then(txn.changes...).Else(txn.reads...).Commit()
	if err != nil {
		return fmt.Errorf("store: commit: %w", s.wrap(s.because(ctx, err)))
	}
	if !resp.Succeeded {
		return fmt.Errorf("store: commit: %w", conflict(ops, resp))
	}
	return nil
}

type compiled struct {
	conds   []clientv3.Cmp
	changes []clientv3.Op
	reads   []clientv3.Op // one for each condition, to say which one failed
}

func compile(ops []Op) (compiled, error) {
	var c compiled
	if len(ops) == 0 || len(ops) > maxTxnOps {
		return c, fmt.Errorf("%d operations, want 1 to %d", len(ops), maxTxnOps)
	}
	for _, op := range ops {
		switch {
		case op.key == "":
			return c, errors.New("an operation without a key")
		case op.rev < 0:
			return c, fmt.Errorf("%s: revision %d is negative", op.key, op.rev)
		case op.problem != "":
			return c, fmt.Errorf("%s: %s", op.key, op.problem)
		}
		if op.cond {
			c.conds = append(c.conds, clientv3.Compare(clientv3.ModRevision(op.key), "=", op.rev))
			c.reads = append(c.reads, clientv3.OpGet(op.key, clientv3.WithKeysOnly()))
		}
		if op.write {
			c.changes = append(c.changes, clientv3.OpPut(op.key, string(op.val), clientv3.WithLease(op.lease)))
		}
		if op.remove {
			c.changes = append(c.changes, clientv3.OpDelete(op.key))
		}
	}
	return c, nil
}

// conflict names the first condition that did not hold.
func conflict(ops []Op, resp *clientv3.TxnResponse) error {
	i := 0
	for _, op := range ops {
		if !op.cond {
			continue
		}
		var have int64
		if i < len(resp.Responses) {
			if kvs := resp.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
				have = kvs[0].GetModRevision()
			}
		}
		i++
		switch {
		case have == op.rev:
			continue
		case op.rev == 0:
			return fmt.Errorf("%w: %s exists", ErrConflict, op.key)
		case have == 0:
			return fmt.Errorf("%w: %s is gone", ErrConflict, op.key)
		}
		return fmt.Errorf("%w: %s changed (revision %d, want %d)", ErrConflict, op.key, have, op.rev)
	}
	return ErrConflict
}
