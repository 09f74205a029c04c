package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// broker checks the way there: name, TCP with TLS, clock, UDP.
func (d *doctor) broker(ctx context.Context) {
	endpoint := d.cfg.Tunnel.Endpoint
	switch {
	case endpoint != "":
	case d.id != nil:
		endpoint = d.id.Endpoint
	case d.bundle != nil:
		endpoint = d.bundle.Endpoint
	default:
		d.skip("broker", "its address is not known without a join bundle")
		return
	}
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		d.fail("broker", fmt.Sprintf("%q is not host:port", endpoint), "put the join bundle or tunnel.endpoint right")
		return
	}
	limit, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	proxy, err := proxyFor(d.cfg.Tunnel)(&url.URL{Scheme: "https", Host: endpoint})
	switch {
	case err != nil:
		d.fail("proxy", err.Error(), "put HTTPS_PROXY right, or set tunnel.proxy")
		return
	case proxy != nil:
		d.ok("proxy", "the broker is reached through "+proxy.Redacted()) // which looks its name up
		d.brokerTCP(limit, endpoint, proxy)
		d.skip("broker by UDP", "not used (a proxy carries TCP only)")
		return
	}
	addrs, err := net.DefaultResolver.LookupHost(limit, host)
	if err != nil {
		d.fail("broker name", fmt.Sprintf("%s can't be resolved: %v", host, err), "look at the network and DNS of this box (resolvectl query "+host+")")
		return
	}
	d.ok("broker name", fmt.Sprintf("%s is %v", host, addrs))
	d.brokerTCP(limit, endpoint, nil)
	d.brokerUDP(limit, endpoint)
}

// brokerTCP connects as for enrolment, which disturbs no session, and verifies as the agent does.
func (d *doctor) brokerTCP(ctx context.Context, endpoint string, proxy *url.URL) {
	var dialer net.Dialer
	var raw net.Conn
	var err error
	next := "a firewall must let this box out to that address and port (TCP, and UDP for speed)"
	if proxy != nil {
		raw, err = tunnel.DialProxy(ctx, &dialer, proxy, endpoint)
		next = "the proxy must let this box CONNECT to that address and port; or set tunnel.proxy"
	} else {
		raw, err = dialer.DialContext(ctx, "tcp", endpoint)
	}
	if err != nil {
		d.fail("broker by TCP", fmt.Sprintf("%s can't be reached: %v", endpoint, err), next)
		return
	}
	defer raw.Close()
	var trust, clock error
	conf := pki.ClientTLS(nil, func(cs tls.ConnectionState) error {
		trust, clock = d.verify(cs)
		return errors.Join(trust, clock)
	})
	conf.NextProtos = []string{enrollapi.ALPN}
	err = tls.Client(raw, conf).HandshakeContext(ctx)
	switch {
	case trust != nil:
		d.fail("broker by TCP", fmt.Sprintf("who answers at %s is not the broker: %v", endpoint, trust), "look for a proxy or captive portal between; if the broker is new, a new join bundle is needed")
		return
	case err != nil && clock == nil:
		d.fail("broker by TCP", fmt.Sprintf("%s answers, but not as a broker does: %v", endpoint, err), "check the address and port in the join bundle")
		return
	}
	d.ok("broker by TCP", endpoint+" answers")
	if clock != nil {
		d.fail("clock", clock.Error(), "set the clock (timedatectl set-ntp true, chronyc makestep)")
		return
	}
	d.ok("clock", "within the validity of the broker's certificate")
}

// verify tells what is wrong with the broker as such from what is only the clock's fault.
func (d *doctor) verify(cs tls.ConnectionState) (trust, clock error) {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("it presents no certificate"), nil
	}
	leaf := cs.PeerCertificates[0]
	at := func(now time.Time) error {
		clock := func() time.Time { return now }
		if d.id != nil {
			cas := x509.NewCertPool()
			cas.AppendCertsFromPEM([]byte(d.id.CABundle))
			return pki.VerifyPeer(func() *x509.CertPool { return cas }, x509.ExtKeyUsageServerAuth, clock, nil)(cs)
		}
		if d.bundle == nil {
			return nil // nothing to judge by
		}
		return pki.VerifyPinned(d.bundle.CACertHashes, clock, nil)(cs)
	}
	now := time.Now()
	if at(now) == nil {
		return nil, nil
	}
	if err := at(leaf.NotBefore.Add(time.Minute)); err != nil {
		return err, nil
	}
	return nil, fmt.Errorf("this box says %s, but the broker's certificate is valid from %s to %s",
		now.UTC().Format(time.RFC3339), leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
}

// brokerUDP asks for a version of QUIC that does not exist: any server answers that with a list of those
// it speaks, and no session is made or disturbed.
func (d *doctor) brokerUDP(ctx context.Context, endpoint string) {
	const name = "broker by UDP"
	if d.cfg.Tunnel.Transport == "tcp" {
		d.skip(name, "not used (tunnel.transport: tcp)")
		return
	}
	err := probeQUIC(ctx, endpoint)
	switch {
	case err == nil:
		d.ok(name, endpoint+" answers")
	case d.cfg.Tunnel.Transport == "quic":
		d.fail(name, err.Error(), "let UDP out to that port, or set tunnel.transport to auto")
	default:
		d.warn(name, err.Error(), "the tunnel works over TCP; letting UDP out to that port makes it better on poor links")
	}
}

func probeQUIC(ctx context.Context, endpoint string) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "udp", endpoint)
	if err != nil {
		return err
	}
	defer conn.Close()
	probe := quicProbe()
	answer := make([]byte, 1500)
	for range 3 { // a datagram may be lost
		if _, err := conn.Write(probe); err != nil {
			return fmt.Errorf("%s can't be reached: %w", endpoint, err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		n, err := conn.Read(answer)
		if err == nil && isVersionNegotiation(answer[:n], probe) {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return fmt.Errorf("%s does not answer", endpoint)
}

// quicProbe is a long-header packet (RFC 8999) of a reserved version, as long as servers want it.
func quicProbe() []byte {
	p := make([]byte, 1200)
	p[0] = 0xc0
	binary.BigEndian.PutUint32(p[1:], 0x1a2a3a4a)
	p[5] = 8
	rand.Read(p[6:14])
	p[14] = 8
	rand.Read(p[15:23])
	return p
}

// isVersionNegotiation recognizes the answer to a probe: version 0, and the probe's connection IDs swapped.
func isVersionNegotiation(answer, probe []byte) bool {
	return len(answer) >= 23 && answer[0]&0x80 != 0 && binary.BigEndian.Uint32(answer[1:]) == 0 &&
		answer[5] == 8 && string(answer[6:14]) == string(probe[15:23]) &&
		answer[14] == 8 && string(answer[15:23]) == string(probe[6:14])
}
