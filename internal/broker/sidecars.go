package broker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	// maxSidecars bounds the sessions of one tenant's sidecars: some API servers, and twice of that while they move.
	maxSidecars = 64
	// sidecarPending is how many opens of a sidecar's session may wait for an answer; in all of them egress.maxPending counts.
	sidecarPending = 256
)

var (
	errSidecarRefused = errors.New("this certificate does not speak for a tenant's API server: issue another with `broker egress issue`")
	errManySidecars   = errors.New("too many sidecars of this tenant have a session here")
)

// adjustSession makes of a session whose certificate is an API server's one that asks for connections to nodes. A node's
// never comes to that handler, nor an API server's to that of nodes.
func (b *broker) adjustSession(cs tls.ConnectionState, c *tunnel.Config) {
	if isSidecar(cs) {
		c.Handler, c.OnStatus, c.MaxPending = b.egress.ServeStream, nil, max(c.MaxPending, sidecarPending)
	}
}

func isSidecar(cs tls.ConnectionState) bool {
	id, err := pki.PeerIdentity(cs)
	return err == nil && id.Role == pki.RoleAPIServer
}

// serveSidecar lets the session of an API server's sidecar in. It does not wait for its end.
func (b *broker) serveSidecar(s *tunnel.Session) {
	id, err := pki.PeerIdentity(s.ConnectionState())
	if err == nil {
		err = b.stillSidecar(s)
	}
	if err == nil {
		err = b.sidecars.enter(s, id.Tenant)
	}
	if err == nil {
		s.Admitted()
		b.admitted.Add(1)
		b.sidecars.check(s) // who removed its tenant meanwhile may not have found it
		return
	}
	b.log.Warn("sidecar's session refused", "tenant", id.Tenant, "remote", s.RemoteAddr().String(), "err", err)
	b.audit.Record(audit.Event{
		Event: "session", Outcome: audit.Refused, Actor: id.String(), Tenant: id.Tenant, Source: s.RemoteAddr().String(), Reason: err.Error(),
	})
	if errors.Is(err, errManySidecars) {
		s.Close(wire.Overloaded, err.Error())
		return
	}
	s.Close(wire.Revoked, errSidecarRefused.Error())
}

// stillSidecar says why a session's certificate is not good (any more): its time or its CA's is over, or it is not of the tenant
// that has the name now.
func (b *broker) stillSidecar(s *tunnel.Session) error {
	cs := s.ConnectionState()
	if err := pki.VerifyPeer(b.ca.pool, x509.ExtKeyUsageClientAuth, time.Now, nil)(cs); err != nil {
		return err
	}
	id, err := pki.PeerIdentity(cs)
	if err != nil {
		return err
	}
	return b.authorizeEgress(id, cs.PeerCertificates[0])
}

// recheckSidecars cuts the sessions of sidecars whose certificates are not good any more: of one tenant, or of all if that is empty.
func (b *broker) recheckSidecars(tenant string) {
	for _, s := range b.sidecars.of(tenant) {
		b.events.Go(func() { b.sidecars.check(s) }) // closing one may take two seconds
	}
}

// watchTenants has what is kept of tenants in memory follow their removal.
func (b *broker) watchTenants() (cancel func()) {
	return b.tenants.Subscribe(func(t tenant.Tenant, deleted bool) {
		if deleted {
			b.egress.Forget(t.Name)
		}
		b.recheckSidecars(t.Name)
	})
}

// sidecars are the live sessions of API servers' sidecars. A tenant may have several: one for each of its API servers. Safe for
// concurrent use.
type sidecars struct {
	log   *slog.Logger
	still func(*tunnel.Session) error

	mu   sync.Mutex // guards the following
	live map[*tunnel.Session]*sidecar
	gone chan struct{} // closed, and made anew, with each session that is removed
}

// sidecar is one session.
type sidecar struct {
	tenant string
	expiry *time.Timer // asks again when the certificate's time is over
}

func newSidecars(reg prometheus.Registerer, log *slog.Logger, still func(*tunnel.Session) error) *sidecars {
	c := &sidecars{log: log, still: still, live: map[*tunnel.Session]*sidecar{}, gone: make(chan struct{})}
	reg.MustRegister(sidecarCollector{c})
	return c
}

// enter takes up a session until its end, unless there are too many of its tenant.
func (c *sidecars) enter(s *tunnel.Session, tenant string) error {
	c.mu.Lock()
	n := 0
	for _, m := range c.live {
		if m.tenant == tenant {
			n++
		}
	}
	if n >= maxSidecars {
		c.mu.Unlock()
		return errManySidecars
	}
	m := &sidecar{tenant: tenant}
	m.expiry = time.AfterFunc(untilExpiry(s), func() { c.check(s) })
	c.live[s] = m
	c.mu.Unlock()

	log := c.log.With("tenant", tenant, "transport", string(s.Transport()), "remote", s.RemoteAddr().String())
	log.Info("sidecar of an API server connected", "sidecars", n+1)
	s.OnEnd(func() {
		c.remove(s)
		log.Info("sidecar's session ended", "after", time.Since(s.Stats().Since).Round(time.Millisecond), "err", s.Err())
	})
	return nil
}

// untilExpiry is the time that a session's certificate has left, and a little more: certificates count in seconds.
func untilExpiry(s *tunnel.Session) time.Duration {
	return time.Until(s.ConnectionState().PeerCertificates[0].NotAfter) + time.Second
}

func (c *sidecars) remove(s *tunnel.Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.live[s]; m != nil {
		m.expiry.Stop()
	}
	delete(c.live, s)
	close(c.gone)
	c.gone = make(chan struct{})
}

// check asks whether a session may go on, and ends it if not.
func (c *sidecars) check(s *tunnel.Session) {
	err := c.still(s)
	c.mu.Lock()
	m := c.live[s]
	if m != nil && err == nil {
		m.expiry.Reset(max(untilExpiry(s), time.Second)) // the clock may have been set
	}
	c.mu.Unlock()
	if m == nil || err == nil {
		return
	}
	c.log.Warn("sidecar's session is closed: its certificate is not good any more",
		"tenant", m.tenant, "remote", s.RemoteAddr().String(), "err", err)
	s.Close(wire.Revoked, errSidecarRefused.Error())
}

// of returns the sessions of one tenant, or of all if that is empty.
func (c *sidecars) of(tenant string) []*tunnel.Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*tunnel.Session
	for s, m := range c.live {
		if tenant == "" || m.tenant == tenant {
			all = append(all, s)
		}
	}
	return all
}

// Count returns how many sessions there are.
func (c *sidecars) Count() int { return len(c.of("")) }

// drain asks all sidecars to move to another broker within delay. It returns when all have been told, or ctx has ended.
func (c *sidecars) drain(ctx context.Context, delay time.Duration) {
	told := make(chan struct{})
	go func() { // ends with the sessions
		defer close(told)
		var all sync.WaitGroup
		for _, s := range c.of("") {
			all.Go(func() { _ = s.Drain(delay) })
		}
		all.Wait()
	}()
	select {
	case <-told:
	case <-ctx.Done():
	}
}

// waitEmpty returns when there are no sessions any more, or ctx has ended.
func (c *sidecars) waitEmpty(ctx context.Context) {
	for {
		c.mu.Lock()
		left, gone := len(c.live), c.gone
		c.mu.Unlock()
		if left == 0 {
			return
		}
		select {
		case <-gone:
		case <-ctx.Done():
			return
		}
	}
}

var sidecarsDesc = prometheus.NewDesc("mooring_sidecar_sessions",
	"Sidecars of API servers connected to this broker now, by tenant and transport.", []string{"tenant", "transport"}, nil)

// sidecarCollector counts the live sessions when it is asked to.
type sidecarCollector struct{ c *sidecars }

func (k sidecarCollector) Describe(out chan<- *prometheus.Desc) { out <- sidecarsDesc }

func (k sidecarCollector) Collect(out chan<- prometheus.Metric) {
	count := map[[2]string]int{}
	k.c.mu.Lock()
	for s, m := range k.c.live {
		count[[2]string{m.tenant, string(s.Transport())}]++
	}
	k.c.mu.Unlock()
	for key, n := range count {
		out <- prometheus.MustNewConstMetric(sidecarsDesc, prometheus.GaugeValue, float64(n), key[0], key[1])
	}
}
