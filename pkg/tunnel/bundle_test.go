package tunnel

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func someBundle(i int) wire.Bundle {
	return wire.Bundle{CABundle: strings.Repeat("x", 1+i*1000), Issuer: fmt.Sprintf("sha256:%064x", i)}
}

// TestBundleAndStatus: each arrives, whole and in order, whichever side says it first.
func TestBundleAndStatus(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		bundles, statuses := make(chan wire.Bundle, 64), make(chan wire.Status, 64)
		agent, brk := dialPair(t, tr,
			Config{OnBundle: func(s *Session, b wire.Bundle) {
				if s == nil || s.Transport() != tr {
					t.Errorf("a bundle of session %v", s)
				}
				bundles <- b
			}},
			Config{OnStatus: func(_ *Session, st wire.Status) { statuses <- st }})
		for i := range 50 {
			if err := brk.SendBundle(someBundle(i)); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 50 {
			if got := within(t, 10*time.Second, bundles, "a bundle"); got != someBundle(i) {
				t.Fatalf("bundle %d arrived as %.60q...", i, got)
			}
		}
		want := wire.Status{Trusts: []string{someBundle(1).Issuer}, CertificateIssuer: someBundle(2).Issuer, CertificateNotAfter: time.Unix(1e9, 0).UTC()}
		if err := agent.SendStatus(want); err != nil {
			t.Fatal(err)
		}
		if got := within(t, 10*time.Second, statuses, "the status"); !reflect.DeepEqual(got, want) {
			t.Errorf("status %+v, want %+v", got, want)
		}
		if err := brk.SendBundle(wire.Bundle{}); err == nil {
			t.Error("an empty bundle was sent")
		}
		_ = brk.Close(wire.Shutdown, "over")
		if err := brk.SendBundle(someBundle(1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("SendBundle on a closed session: %v", err)
		}
	})
}

// TestBundleToWhoDoesNotListen: frames that nobody asked for do no harm.
func TestBundleToWhoDoesNotListen(t *testing.T) {
	conform(t, Config{}, func(t *testing.T, p *pair) {
		if err := errors.Join(p.opener.SendBundle(someBundle(3)), p.opener.SendStatus(wire.Status{})); err != nil {
			t.Fatal(err)
		}
		_ = p.open(t).Close()
		if err := p.acceptor.Err(); err != nil {
			t.Error(err)
		}
	})
}

func TestCertificateRefused(t *testing.T) {
	stranger, strangerKey := makeCert("other ca", nil, nil)
	ours := *agentTLS()
	for name, tc := range map[string]struct {
		agent, broker *tls.Config
		want          bool
	}{
		"of an unknown CA": {broker: brokerTLS(), want: true,
			agent: &tls.Config{RootCAs: pki().roots, Certificates: []tls.Certificate{leaf("agent", stranger, strangerKey)}}},
		"none": {broker: brokerTLS(), want: true, agent: &tls.Config{RootCAs: pki().roots}},
		"refused by VerifyConnection": {agent: &ours, want: true, broker: &tls.Config{
			Certificates: []tls.Certificate{pki().broker}, ClientAuth: tls.RequireAnyClientCert,
			VerifyConnection: func(tls.ConnectionState) error { return errors.New("not you") },
		}},
		"the broker's is": {broker: brokerTLS(), want: false,
			agent: &tls.Config{Certificates: []tls.Certificate{pki().agent}}},
	} {
		t.Run(name, func(t *testing.T) {
			eachTransport(t, func(t *testing.T, tr Transport) {
				b := startBroker(t, AcceptorConfig{TLS: tc.broker})
				for range 10 { // the refusal races with what the client sends
					d := dialer(b.addr, tr, Config{})
					d.TLS = tc.agent
					s, err := d.Dial(t.Context())
					if err == nil {
						_ = s.Close(wire.Shutdown, "")
						t.Fatal("a session came up")
					}
					if CertificateRefused(err) != tc.want {
						t.Fatalf("CertificateRefused(%v) is %v", err, !tc.want)
					}
				}
			})
		})
	}
}

func TestCertificateNotRefused(t *testing.T) {
	b := startBroker(t, AcceptorConfig{})
	b.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, nobody := dialer(b.addr, TransportTCP, Config{}).Dial(ctx)
	_, mute := dialer(b.addr, TransportQUIC, Config{HandshakeTimeout: 200 * time.Millisecond}).Dial(ctx)
	for _, err := range []error{
		nobody, mute, errors.Join(nobody, mute), nil, net.ErrClosed,
		&net.OpError{Op: "remote error", Err: tls.AlertError(80)}, // internal error
		&net.OpError{Op: "local error", Err: tls.AlertError(42)},
		&net.OpError{Op: "remote error"},
		&ClosedError{Code: wire.Revoked, Remote: true},
	} {
		if CertificateRefused(err) {
			t.Errorf("CertificateRefused(%v)", err)
		}
	}
	refused := &net.OpError{Op: "remote error", Err: tls.AlertError(45)}
	if !CertificateRefused(fmt.Errorf("a: %w", errors.Join(nobody, &ClosedError{Err: refused}))) {
		t.Error("a refusal deep in the tree is not found")
	}
}

// TestNetwork: what the broker knows of the cluster arrives, whole and in order.
func TestNetwork(t *testing.T) {
	eachTransport(t, func(t *testing.T, tr Transport) {
		got := make(chan wire.Network, 2)
		_, brk := dialPair(t, tr, Config{OnNetwork: func(_ *Session, n wire.Network) { got <- n }}, Config{})
		want := wire.Network{
			ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:1::/108")},
			APIServers:   []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:6443"), netip.MustParseAddrPort("[fd00::1]:6443")},
		}
		if err := errors.Join(brk.SendNetwork(want), brk.SendNetwork(wire.Network{})); err != nil {
			t.Fatal(err)
		}
		for _, want := range []wire.Network{want, {}} {
			if n := within(t, 10*time.Second, got, "a network"); !reflect.DeepEqual(n, want) {
				t.Errorf("network %+v, want %+v", n, want)
			}
		}
		if err := brk.SendNetwork(wire.Network{APIServers: []netip.AddrPort{{}}}); err == nil {
			t.Error("an address that is none was sent")
		}
	})
}
