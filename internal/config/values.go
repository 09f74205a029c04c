package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The checks of single values; each error says what is wanted and quotes what it got.

func oneOf(got string, want ...string) error {
	if slices.Contains(want, got) {
		return nil
	}
	return fmt.Errorf("want one of %s, got %q", strings.Join(want, ", "), got)
}

func absolute(p string) error {
	if !filepath.IsAbs(p) {
		return fmt.Errorf("want an absolute path, got %q", p)
	}
	return nil
}

// hostPort wants a host and a port that are both there: something to dial.
func hostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return fmt.Errorf(`want host:port, got %q`, s)
	}
	return portNumber(port)
}

// listenAddr wants an address to listen on: the host may be empty, but must not be a name.
func listenAddr(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf(`want ip:port or :port, got %q`, s)
	}
	if host != "" {
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("want an IP address before the port, got %q", s)
		}
	}
	return portNumber(port)
}

// loopbackAddr wants a listening address that only this machine reaches.
func loopbackAddr(s string) error {
	if err := listenAddr(s); err != nil {
		return err
	}
	host, _, _ := net.SplitHostPort(s)
	if a, err := netip.ParseAddr(host); err != nil || !a.IsLoopback() {
		return fmt.Errorf("want a loopback address such as 127.0.0.1, got %q", s)
	}
	return nil
}

func portNumber(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("want a port from 1 to 65535, got %q", s)
	}
	return nil
}

func httpsURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
		return fmt.Errorf("want https://host:port, got %q", s)
	}
	return certifiable(u.Host)
}

// NoProxy as a proxy means: none, whatever the environment says.
const NoProxy = "none"

// ProxyURL parses the URL of an HTTP proxy. Its errors never repeat it, as it may hold a password.
func ProxyURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf(`want http://host:port, http://user:password@host:port (special characters as %%40), https://... or %q`, NoProxy)
	}
	if u.Port() != "" {
		if err := portNumber(u.Port()); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// collectorURL wants a scheme, which says whether TLS is spoken, a host and a port.
func collectorURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || hostPort(u.Host) != nil || (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fmt.Errorf("want http://host:port, or https://host:port for TLS, got %q", s)
	}
	return nil
}

// certifiable wants host:port with a host that the broker's certificate can name.
func certifiable(s string) error {
	if err := hostPort(s); err != nil {
		return err
	}
	host, _, _ := net.SplitHostPort(s)
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	return dnsName(strings.ToLower(host))
}

// trustDomain wants a name that the CA can be made for.
func trustDomain(s string) error {
	if _, err := netip.ParseAddr(s); err == nil {
		return fmt.Errorf("want a DNS name, got the address %q", s)
	}
	return dnsName(s)
}

// balancers wants a network whose word is taken for where a connection comes from.
func balancers(s string) error {
	n, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("want a network such as 192.0.2.0/24, got %q", s)
	}
	if n.Bits() == 0 {
		return fmt.Errorf("%s is everybody: anybody could say that he is another", s)
	}
	return nil
}

func between(got Duration, low, high time.Duration) error {
	if got.Duration < low || got.Duration > high {
		return fmt.Errorf("want a duration from %s to %s, got %s", low, high, got)
	}
	return nil
}

func intBetween(got, low, high int) error {
	if got < low || got > high {
		return fmt.Errorf("want a number from %d to %d, got %d", low, high, got)
	}
	return nil
}

// caHash wants kubeadm's form: "sha256:" and the hex of the SHA-256 of a CA's public key.
func caHash(s string) error {
	hex, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return fmt.Errorf(`want "sha256:" and 64 lower-case hex digits, got %q`, s)
	}
	return nil
}

// dnsName wants a lower-case DNS name: labels of letters, digits and inner dashes.
func dnsName(s string) error {
	if len(s) == 0 || len(s) > 253 {
		return fmt.Errorf("want a DNS name of 1 to 253 characters, got %d", len(s))
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return fmt.Errorf("want a DNS name (lower-case letters, digits, dashes, dots), got %q", s)
		}
	}
	return nil
}

var errRequired = errors.New("required")

func validateLog(p *problems, l Log) {
	p.check("log.level", oneOf(l.Level, "debug", "info", "warn", "error"))
	p.check("log.format", oneOf(l.Format, "text", "json"))
}
