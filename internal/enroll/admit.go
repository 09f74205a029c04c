package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
)

// AdmitResult is what Admit decided.
type AdmitResult struct {
	Verdict Verdict
	// Reason is for the log and the audit.
	Reason string
	// Clone: this session showed that there are two boxes; both are in quarantine from now on.
	Clone bool
	// Restarted: the box has no past that is known, and took over from a session that was dead.
	Restarted bool
	// Lines are the boxes in quarantine.
	Lines []Line
}

// Admit decides whether the session of an authorized node may serve it, and remembers it as the newest if so. alive
// asks the node's older session for a sign of life; false also if there is none. It is called once at most. Errors are
// ErrTooOften, and the store's, which leave open whether the session is remembered.
func (n *Nodes) Admit(ctx context.Context, tenant, node string, h Lineage, alive func() bool) (AdmitResult, error) {
	if !n.sessions.allow(h.SPKI, h.Now) {
		return AdmitResult{}, fmt.Errorf("admit a session of node %s/%s: %w", tenant, node, ErrTooOften)
	}
	var res AdmitResult
	var asked, answer bool
	once := func() bool {
		if !asked {
			asked, answer = true, alive()
		}
		return answer
	}
	err := n.editLineage(ctx, tenant, node, func(rec *lineageRecord) (bool, error) {
		j := judge(rec, h, once)
		res = AdmitResult{Verdict: j.verdict, Reason: j.reason, Clone: j.clone, Restarted: j.restarted, Lines: rec.Lines}
		return j.changed, nil
	})
	if err != nil {
		return AdmitResult{}, fmt.Errorf("admit a session of node %s/%s: %w", tenant, node, err)
	}
	return res, nil
}

// StillAdmitted judges a session that Admit accepted anew, from what is remembered by now.
func (n *Nodes) StillAdmitted(ctx context.Context, tenant, node string, h Lineage) (AdmitResult, error) {
	rec, _, err := getLineage(ctx, n.store, tenant, node)
	if err != nil {
		return AdmitResult{}, fmt.Errorf("look up the lineage of node %s/%s: %w", tenant, node, err)
	}
	j := rec.current(h)
	return AdmitResult{Verdict: j.verdict, Reason: j.reason, Lines: rec.Lines}, nil
}

// Quarantine returns the boxes that use the identity of a node in quarantine; none if it is not.
func (n *Nodes) Quarantine(ctx context.Context, tenant, node string) ([]Line, error) {
	rec, _, err := getLineage(ctx, n.store, tenant, node)
	if err != nil {
		return nil, fmt.Errorf("look up the lineage of node %s/%s: %w", tenant, node, err)
	}
	return rec.Lines, nil
}

// Quarantines returns the boxes of all nodes in quarantine, by "tenant/node".
func (n *Nodes) Quarantines(ctx context.Context) (map[string][]Line, error) {
	items, err := n.store.List(ctx, lineagePrefix)
	if err != nil {
		return nil, fmt.Errorf("list lineages: %w", err)
	}
	all := map[string][]Line{}
	for _, it := range items {
		if lines := linesOf(it.Value); len(lines) > 0 {
			all[strings.TrimPrefix(it.Key, lineagePrefix)] = lines
		}
	}
	return all, nil
}

// ErrNotQuarantined says that there is nothing to resolve.
var ErrNotQuarantined = errors.New("is not in quarantine")

// NoSuchBoxError says which boxes there are.
type NoSuchBoxError struct {
	ID    string
	Boxes []string
}

func (e *NoSuchBoxError) Error() string {
	return fmt.Sprintf("no box of it has the ID %.80q: there are %s", e.ID, strings.Join(e.Boxes, ", "))
}

// Resolve ends a node's quarantine: the box with this ID is let in when it comes again, the others are not. Errors:
// ErrNodeNotFound, ErrNotQuarantined, *NoSuchBoxError, the store's.
func (n *Nodes) Resolve(ctx context.Context, tenant, node, keep string) (kept Line, err error) {
	if _, err := n.Get(ctx, tenant, node); err != nil {
		return Line{}, err
	}
	err = n.editLineage(ctx, tenant, node, func(rec *lineageRecord) (bool, error) {
		if len(rec.Lines) == 0 {
			return false, ErrNotQuarantined
		}
		if !rec.keep(keep) {
			var ids []string
			for _, l := range rec.Lines {
				ids = append(ids, l.ID+" from "+l.Remote)
			}
			return false, &NoSuchBoxError{ID: keep, Boxes: ids}
		}
		kept = rec.Tip
		return true, nil
	})
	if err != nil {
		return Line{}, fmt.Errorf("node %s/%s: %w", tenant, node, err)
	}
	n.log.Info("quarantine resolved", "tenant", tenant, "node", node, "kept", kept.ID, "remote", kept.Remote)
	return kept, nil
}

// WatchLineages calls fn for each node whose sessions are remembered, then synced, and then for each that changes or
// is forgotten, with the session that was accepted last and the boxes in quarantine; one call at a time, until ctx ends.
func WatchLineages(ctx context.Context, w Watcher, synced func(), fn func(tenant, node string, tip Line, quarantined []Line)) error {
	return w.WatchSynced(ctx, lineagePrefix, synced, func(ev store.Event) {
		if tenant, node, ok := strings.Cut(strings.TrimPrefix(ev.Key, lineagePrefix), "/"); ok {
			var rec lineageRecord
			if json.Unmarshal(ev.Value, &rec) != nil {
				rec = lineageRecord{}
			}
			fn(tenant, node, rec.Tip, rec.Lines)
		}
	})
}

func linesOf(value []byte) []Line {
	var rec lineageRecord
	if json.Unmarshal(value, &rec) != nil {
		return nil
	}
	return rec.Lines
}

// getLineage returns the record and its revision; an empty one with revision 0 if there is none.
func getLineage(ctx context.Context, s Store, tenant, node string) (rec lineageRecord, rev int64, err error) {
	it, err := s.Get(ctx, lineageKey(tenant, node))
	if errors.Is(err, store.ErrNotFound) {
		return rec, 0, nil
	}
	if err != nil {
		return rec, 0, err
	}
	if err := json.Unmarshal(it.Value, &rec); err != nil {
		return rec, 0, fmt.Errorf("lineage of node %s/%s in the store can't be read: %w", tenant, node, err)
	}
	return rec, it.Rev, nil
}

// editLineage reads the record, has edit change it, and writes it if edit says so; again if it was beaten.
func (n *Nodes) editLineage(ctx context.Context, tenant, node string, edit func(*lineageRecord) (bool, error)) error {
	if err := errors.Join(pki.ValidTenant(tenant), pki.ValidNode(node)); err != nil {
		return err
	}
	return retry(ctx, func() error {
		rec, rev, err := getLineage(ctx, n.store, tenant, node)
		if err != nil {
			return err
		}
		if changed, err := edit(&rec); err != nil || !changed {
			return err
		}
		val, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		return n.store.Commit(ctx, store.Replace(lineageKey(tenant, node), val, rev))
	})
}

// forgetLineage is the write by which a node's sessions are forgotten with it; none if nothing is remembered.
func forgetLineage(ctx context.Context, s Store, tenant, node string) ([]store.Op, error) {
	it, err := s.Get(ctx, lineageKey(tenant, node))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []store.Op{store.Delete(it.Key, it.Rev)}, nil
}

// String is the box as a person is told of it.
func (l Line) String() string {
	return fmt.Sprintf("%s (from %s, last seen %s)", l.ID, l.Remote, l.LastSeen.UTC().Format(time.RFC3339))
}
