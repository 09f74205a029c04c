package agent

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/mooring-edge/mooring/internal/config"
)

// proxyFor returns who says by which HTTP proxy the broker is reached: the configuration, or, where that leaves it open,
// HTTPS_PROXY and NO_PROXY of the environment (read once, as net/http does).
func proxyFor(cfg config.AgentTunnel) func(*url.URL) (*url.URL, error) {
	switch cfg.Proxy {
	case "":
		return func(u *url.URL) (*url.URL, error) { return http.ProxyFromEnvironment(&http.Request{URL: u}) }
	case config.NoProxy:
		return func(*url.URL) (*url.URL, error) { return nil, nil }
	}
	return func(*url.URL) (*url.URL, error) { return config.ProxyURL(cfg.Proxy) }
}

// wayOut is the first host:port on the way to the broker: the proxy's, or its own.
func wayOut(proxy func(*url.URL) (*url.URL, error), endpoint string) string {
	u, err := proxy(&url.URL{Scheme: "https", Host: endpoint})
	if err != nil || u == nil {
		return endpoint
	}
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
}

// networkName names the network that the box is in now, by the prefix of the address that the way out begins at. Two
// sites may share one, such as 192.168.1.0/24: what is remembered of a network costs little where it is wrong.
func networkName(ctx context.Context, wayOut string) string {
	a, err := sourceAddr(ctx, wayOut)
	if err != nil {
		return ""
	}
	bits := 64
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}

var errNoSource = errors.New("no source address")

// sourceAddr asks the kernel which source address it would use to reach a host:port. Connecting a UDP socket sends nothing.
func sourceAddr(ctx context.Context, to string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", to)
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	l, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}, errNoSource
	}
	return l.AddrPort().Addr().Unmap().WithZone(""), nil
}
