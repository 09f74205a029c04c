package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// holders are the live sessions by what their nodes hold of the CA: each is told the bundle when it begins and
// when it changes, and answers with a status. Safe for concurrent use.
type holders struct {
	ring func() *pki.Keyring
	log  *slog.Logger

	mu   sync.Mutex // guards the following field, and each holder's status
	live map[*tunnel.Session]*holder
}

// holder is one session.
type holder struct {
	s      *tunnel.Session
	id     pki.Identity
	status *wire.Status // what the node said last; nil: nothing yet
	pushes sync.WaitGroup

	mu   sync.Mutex   // held while a bundle is sent, so that the last one is the newest; guards the following field
	sent *pki.Keyring // whose bundle was sent last
}

func newHolders(ring func() *pki.Keyring, log *slog.Logger) *holders {
	return &holders{ring: ring, log: log, live: map[*tunnel.Session]*holder{}}
}

// enter takes up a session that was let in, and tells it the bundle. leave is to be called when it has ended.
func (h *holders) enter(s *tunnel.Session, id pki.Identity) (leave func()) {
	m := &holder{s: s, id: id}
	h.mu.Lock()
	h.live[s] = m
	h.tell(m)
	h.mu.Unlock()
	return func() {
		h.mu.Lock()
		delete(h.live, s)
		h.mu.Unlock()
		m.pushes.Wait()
	}
}

// push tells all sessions, which takes each as long as its connection wants.
func (h *holders) push() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.live {
		h.tell(m)
	}
}

// tell sends the bundle in a goroutine of its own. h.mu is held.
func (h *holders) tell(m *holder) {
	m.pushes.Go(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		ring := h.ring()
		if m.sent == ring {
			return
		}
		if err := m.s.SendBundle(wire.Bundle{CABundle: string(ring.BundlePEM()), Issuer: ring.Hash()}); err != nil {
			h.log.Debug("CA bundle not sent", "tenant", m.id.Tenant, "node", m.id.Name, "err", err)
			return
		}
		m.sent = ring
	})
}

// onStatus is tunnel.Config's.
func (h *holders) onStatus(s *tunnel.Session, st wire.Status) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.live[s]; m != nil {
		m.status = &st
		h.log.Debug("node says what it holds of the CA", "tenant", m.id.Tenant, "node", m.id.Name,
			"trusts", len(st.Trusts), "issuer", st.CertificateIssuer)
	}
}

// list says what each live session's node holds.
func (h *holders) list() []admin.Holder {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]admin.Holder, 0, len(h.live))
	for s, m := range h.live {
		if s.Err() != nil {
			continue
		}
		e := admin.Holder{Tenant: m.id.Tenant, Node: m.id.Name}
		if m.status != nil {
			e.Trusts, e.CertificateIssuer = m.status.Trusts, m.status.CertificateIssuer
		}
		out = append(out, e)
	}
	return out
}

const egressCertPrefix = "/mooring/egress-certs/"

// egressCerts remembers the last egress certificate of each tenant. It implements admin.EgressCerts.
type egressCerts struct{ store *store.Store }

// Put remembers a certificate that is about to be handed out.
func (e egressCerts) Put(ctx context.Context, tenant string, c admin.EgressCert) error {
	val, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return e.store.Commit(ctx, store.Put(egressCertPrefix+tenant, val))
}

// List returns the last certificate of each tenant.
func (e egressCerts) List(ctx context.Context) (map[string]admin.EgressCert, error) {
	items, err := e.store.List(ctx, egressCertPrefix)
	if err != nil {
		return nil, err
	}
	out := map[string]admin.EgressCert{}
	for _, it := range items {
		var c admin.EgressCert
		if err := json.Unmarshal(it.Value, &c); err != nil {
			return nil, fmt.Errorf("%s in the store can't be read: %w", it.Key, err)
		}
		out[strings.TrimPrefix(it.Key, egressCertPrefix)] = c
	}
	return out, nil
}

// purge forgets a tenant's.
func (e egressCerts) purge(ctx context.Context, tenant string) error {
	it, err := e.store.Get(ctx, egressCertPrefix+tenant)
	if err == nil {
		err = e.store.Commit(ctx, store.Delete(it.Key, it.Rev))
	}
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrConflict) {
		return nil
	}
	return err
}
