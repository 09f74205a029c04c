package peers

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/mooring-edge/mooring/internal/store"
)

// publish writes what is here, under one lease after another.
func (d *Directory) publish(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := d.publishUnder(ctx); err != nil && ctx.Err() == nil {
			d.cfg.Logger.Warn("other brokers can't be told which nodes are connected here; trying again", "err", err, "wait", retryWrite)
			pause(ctx, retryWrite)
		}
	}
	return nil
}

func (d *Directory) publishUnder(ctx context.Context) error {
	lease, err := d.cfg.Store.Lease(ctx, d.cfg.TTL)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = lease.Close(ctx) // else it ends by itself, with its time
	}()
	record, err := json.Marshal(brokerRecord{d.cfg.Address})
	if err != nil {
		return err
	}
	if err := d.cfg.Store.Commit(ctx, store.Put(brokerPrefix+d.id, record).Leased(lease)); err != nil {
		return err
	}
	d.mu.Lock()
	for p := range d.here { // under a new lease, all of it
		d.soil(p)
	}
	d.mu.Unlock()
	for {
		select {
		case <-d.wake:
		case <-lease.Lost():
			return errors.New("the lease in the store is lost")
		case <-ctx.Done():
			return nil
		}
		for {
			batch := d.take()
			if len(batch) == 0 {
				break
			}
			if err := d.write(ctx, lease, batch); err != nil {
				d.giveBack(batch)
				// What stands in the store stands as long as the lease does: to begin anew would take it all away for a while.
				d.cfg.Logger.Warn("other brokers can't be told of some nodes; trying again", "nodes", len(batch), "err", err, "wait", retryWrite)
				select {
				case <-time.After(retryWrite):
				case <-lease.Lost():
					return errors.New("the lease in the store is lost")
				case <-ctx.Done():
					return nil
				}
			}
		}
	}
}

// take removes the next places to write from those that are dirty.
func (d *Directory) take() []place {
	d.mu.Lock()
	defer d.mu.Unlock()
	var batch []place
	for p := range d.dirty {
		if len(batch) == writeBatch {
			break
		}
		batch = append(batch, p)
		delete(d.dirty, p)
	}
	return batch
}

func (d *Directory) giveBack(batch []place) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range batch {
		d.soil(p)
	}
}

// write makes the store say of each place what is so here.
func (d *Directory) write(ctx context.Context, lease *store.Lease, batch []place) error {
	var puts, deletes []store.Op
	d.mu.Lock()
	for _, p := range batch {
		if own := d.here[p]; own != nil {
			val, err := json.Marshal(Route{d.id, own.addresses})
			if err != nil {
				d.mu.Unlock()
				return err
			}
			puts = append(puts, store.Put(p.key(), val).Leased(lease))
		} else if rev := d.revs[p]; rev != 0 {
			deletes = append(deletes, store.Delete(p.key(), rev))
		} // else what was written comes back by the watch, and is deleted then
	}
	d.mu.Unlock()
	if len(puts) > 0 {
		if err := d.cfg.Store.Commit(ctx, puts...); err != nil {
			return err
		}
	}
	for _, op := range deletes {
		if err := d.cfg.Store.Commit(ctx, op); err != nil && !errors.Is(err, store.ErrConflict) { // conflict: another broker's by now
			return err
		}
	}
	return nil
}
