package broker

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/pkg/health"
)

const caKey = "/mooring/pki/ca"

// authority is the broker's keyring. It is kept in the store, and what another broker of the same store changes
// is taken over at once. Safe for concurrent use.
type authority struct {
	store       *store.Store
	trustDomain string
	log         *slog.Logger
	current     atomic.Pointer[keys]
	// changed is called after each change; set before the first. It must not block.
	changed func()

	mu  sync.Mutex // held while current changes; guards the following field
	rev int64      // of the record that current is
}

// keys are a keyring and what it trusts: one pool for all who verify by it, who know by that what they have verified before.
type keys struct {
	ring *pki.Keyring
	pool *x509.CertPool
}

// openAuthority reads the keyring from the store, or makes it at the very first start.
func openAuthority(ctx context.Context, st *store.Store, trustDomain string, log *slog.Logger) (*authority, error) {
	a := &authority{store: st, trustDomain: trustDomain, log: log}
	_, err := loadOrMake(ctx, st, caKey, func() ([]byte, error) {
		ring, err := pki.NewKeyring(trustDomain, time.Now())
		if err != nil {
			return nil, err
		}
		return ring.Marshal()
	})
	if err != nil {
		return nil, err
	}
	item, err := st.Get(ctx, caKey)
	if err != nil {
		return nil, err
	}
	return a, a.take(item)
}

// Keyring returns the keyring of the moment.
func (a *authority) Keyring() *pki.Keyring { return a.current.Load().ring }

// pool returns the CAs that are trusted. It is the same one until they change, and not to be changed.
func (a *authority) pool() *x509.CertPool { return a.current.Load().pool }

// take makes a record the current one, if it is newer.
func (a *authority) take(item store.Item) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if item.Rev <= a.rev {
		return nil
	}
	ring, err := pki.ParseKeyring(item.Value)
	if err != nil {
		return fmt.Errorf("the CA in the store can't be used: %w", err)
	}
	if td := ring.TrustDomain(); td != a.trustDomain {
		return fmt.Errorf("trustDomain is %q, but the CA was made for %q: set it back (every identity carries it)", a.trustDomain, td)
	}
	a.current.Store(&keys{ring: ring, pool: ring.Pool()})
	a.rev = item.Rev
	if a.changed != nil {
		a.changed()
	}
	return nil
}

// Change replaces the keyring by what fn makes of it. When it returns, the store and this broker have the new one,
// and other brokers of the store soon. admin.ErrConflict: somebody else changed it meanwhile.
func (a *authority) Change(ctx context.Context, fn func(*pki.Keyring) (*pki.Keyring, error)) (*pki.Keyring, error) {
	item, err := a.store.Get(ctx, caKey)
	if err != nil {
		return nil, err
	}
	ring, err := pki.ParseKeyring(item.Value)
	if err != nil {
		return nil, err
	}
	next, err := fn(ring)
	if err != nil {
		return nil, err
	}
	data, err := next.Marshal()
	if err != nil {
		return nil, err
	}
	err = a.store.Commit(ctx, store.Replace(caKey, data, item.Rev))
	if errors.Is(err, store.ErrConflict) {
		return nil, fmt.Errorf("change the CA: %w", admin.ErrConflict)
	}
	if err != nil {
		return nil, err
	}
	if item, err = a.store.Get(ctx, caKey); err != nil {
		return nil, err
	}
	if err := a.take(item); err != nil {
		return nil, err
	}
	return next, nil
}

// watch takes over what changes in the store, until ctx ends.
func (a *authority) watch(ctx context.Context) error {
	err := a.store.Watch(ctx, caKey, func(ev store.Event) {
		switch {
		case ev.Key != caKey:
		case ev.Deleted:
			a.log.Error("the CA's record is gone from the store; the broker goes on with what it knows, and could not start again: restore the store from a backup")
		default:
			if err := a.take(ev.Item); err != nil {
				a.log.Error("the CA was changed in the store to what can't be used; the broker goes on with what it knows", "err", err)
			}
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// caChanged lets everybody know of a new keyring. Handshakes look for themselves; no session is touched but a sidecar's whose
// certificate is of a CA that was retired.
func (b *broker) caChanged() {
	ring := b.ca.Keyring()
	b.log.Info("CA changed", "phase", string(ring.Phase()), "issuer", ring.Hash())
	b.checkCA(time.Now())
	b.holders.push()
	b.recheckSidecars("")
	b.resyncKamaji()
}

// Conditions about the broker's own certificates.
const (
	condCA          = "CA"
	condCertificate = "Certificate"
)

// caNotice is how long before its end the CA is to be rotated. Nodes that are off in that time, and know it alone, can
// be vouched for until the end and no longer.
const caNotice = 365 * 24 * time.Hour

// reportCA keeps the conditions about the broker's own certificates current.
func (b *broker) reportCA(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		b.checkCA(time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (b *broker) checkCA(now time.Time) {
	end := b.ca.Keyring().Issuer().NotAfter()
	day := end.UTC().Format(time.DateOnly)
	switch left := end.Sub(now); {
	case left <= 0:
		b.health.Set(condCA, health.False, "Expired", "the CA ended on "+day+": rotate it with `broker ca rotate`; nodes that know no other need new join bundles")
	case left < caNotice:
		b.health.Set(condCA, health.False, "Expiring", "the CA ends on "+day+": rotate it with `broker ca rotate`, so that nodes which are off meet both")
	default:
		b.health.Set(condCA, health.True, "Valid", "the CA is valid until "+day)
	}
	if cert, err := b.cert.get(); err != nil {
		b.health.Set(condCertificate, health.False, "NotIssued", "the broker can't issue its own certificate: "+err.Error())
	} else {
		b.health.Set(condCertificate, health.True, "Valid", "the broker's own certificate is valid until "+cert.Leaf.NotAfter.UTC().Format(time.DateOnly)+", and renewed before")
	}
}

// expiryCollector shows when the broker's certificates end.
type expiryCollector struct {
	ring func() *pki.Keyring
	cert *serverCert
}

var (
	caExpiry = prometheus.NewDesc("mooring_ca_expiry_timestamp_seconds",
		"When a CA's certificate ends, in seconds since 1970; the issuer, and the next or previous one of a rotation.", []string{"role"}, nil)
	servingExpiry = prometheus.NewDesc("mooring_serving_certificate_expiry_timestamp_seconds",
		"When the broker's own certificate ends, in seconds since 1970.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *expiryCollector) Describe(ch chan<- *prometheus.Desc) { ch <- caExpiry; ch <- servingExpiry }

// Collect implements prometheus.Collector.
func (c *expiryCollector) Collect(ch chan<- prometheus.Metric) {
	for _, ca := range c.ring().CAs() {
		if ca.Role != "retired" {
			ch <- prometheus.MustNewConstMetric(caExpiry, prometheus.GaugeValue, float64(ca.NotAfter.Unix()), ca.Role)
		}
	}
	if cert, err := c.cert.get(); err == nil {
		ch <- prometheus.MustNewConstMetric(servingExpiry, prometheus.GaugeValue, float64(cert.Leaf.NotAfter.Unix()))
	}
}
