package broker

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
)

const resetKey = "/mooring/pki/reset-key"

// loadResetKey reads the key by which a restarted broker tells agents at once that it does not know
// their QUIC connections any more (RFC 9000, section 10.3).
func loadResetKey(ctx context.Context, st *store.Store) (key [32]byte, err error) {
	raw, err := loadOrMake(ctx, st, resetKey, func() ([]byte, error) {
		b := make([]byte, len(key))
		rand.Read(b)
		return b, nil
	})
	if err != nil {
		return key, err
	}
	if len(raw) != len(key) {
		return key, fmt.Errorf("the QUIC reset key in the store has %d bytes, want %d", len(raw), len(key))
	}
	return [32]byte(raw), nil
}

// loadOrMake reads a value, or commits the one that fresh makes if there is none. Of several that
// start at once, one wins and all use its value.
func loadOrMake(ctx context.Context, st *store.Store, key string, fresh func() ([]byte, error)) ([]byte, error) {
	for {
		item, err := st.Get(ctx, key)
		if err == nil {
			return item.Value, nil
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		value, err := fresh()
		if err != nil {
			return nil, err
		}
		if err := st.Commit(ctx, store.Create(key, value)); err != nil && !errors.Is(err, store.ErrConflict) {
			return nil, err
		}
	}
}

// brokerCertTTL is the life of the broker's own certificate, which it issues itself and renews when
// two thirds are over.
const brokerCertTTL = 30 * 24 * time.Hour

// serverCert is the broker's own certificate, renewed when it is asked for, and when the CA has changed.
type serverCert struct {
	ring func() *pki.Keyring
	id   string
	dns  []string
	ips  []net.IP

	mu sync.Mutex // guards the following fields
	// current is nil before the first use.
	current *tls.Certificate
	bare    *tls.Certificate // current without the CAs' own certificates
	from    *pki.Keyring     // which issued current
	renewAt time.Time
}

// newServerCert prepares a certificate for the names by which API servers and nodes reach the broker.
// Nodes go by its identity; API servers verify the name, as any HTTPS client does.
func newServerCert(ring func() *pki.Keyring, cfg *config.Broker) *serverCert {
	s := &serverCert{ring: ring, id: brokerID()}
	s.addName("localhost")
	s.addName("127.0.0.1")
	if host, _, err := net.SplitHostPort(cfg.Front.PublicEndpoint); err == nil {
		s.addName(host)
	}
	if u, err := url.Parse(cfg.Egress.PublicEndpoint); err == nil {
		s.addName(u.Hostname())
	}
	if zone := cfg.Konnectivity.Zone(cfg.Front.Domain); cfg.Konnectivity.Enabled {
		s.addName("*." + zone) // its agents verify the name
	}
	return s
}

func (s *serverCert) addName(host string) {
	if a, err := netip.ParseAddr(host); err == nil {
		s.ips = append(s.ips, a.AsSlice())
		return
	}
	s.dns = append(s.dns, strings.ToLower(host)) // as the CA writes names, and as everybody compares them
}

// brokerID names this broker in its certificate: the host's name, where that can be a name.
func brokerID() string {
	if host, err := os.Hostname(); err == nil && pki.ValidNode(host) == nil {
		return host
	}
	return "broker"
}

// get returns it with all by which somebody who has known one of the CAs, or no more than its hash, can verify it.
func (s *serverCert) get() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.renew()
	return s.current, err
}

// withoutRoots returns it for those who have a CA in a file, and so no use for one that comes with it: to verify by both takes a signature more.
func (s *serverCert) withoutRoots() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.renew()
	return s.bare, err
}

// renew sees to it that current is good. mu is held.
func (s *serverCert) renew() error {
	now, ring := time.Now(), s.ring()
	if s.current != nil && s.from == ring && now.Before(s.renewAt) {
		return nil
	}
	cert, err := ring.IssueBroker(s.id, s.dns, s.ips, now, brokerCertTTL)
	if err != nil {
		return fmt.Errorf("issue the broker's own certificate: %w", err)
	}
	bare := cert
	bare.Certificate = pki.WithoutRoots(cert.Certificate)
	s.current, s.bare, s.from, s.renewAt = &cert, &bare, ring, now.Add(brokerCertTTL*2/3)
	return nil
}
