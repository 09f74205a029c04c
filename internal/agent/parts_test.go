package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

func TestDialCodes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	open := netip.MustParseAddrPort(l.Addr().String())
	closed := netip.AddrPortFrom(open.Addr(), uint16(freePort(t)))
	defer l.Close()
	expired, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	canceled, cancelNow := context.WithCancel(t.Context())
	cancelNow()
	for name, c := range map[string]struct {
		ctx    context.Context
		kind   wire.Kind
		target string
		to     netip.AddrPort
		want   wire.Code
	}{
		"open":         {t.Context(), wire.KindDial, "edge-1:10250", open, wire.OK},
		"closed":       {t.Context(), wire.KindDial, "edge-1:10250", closed, wire.DialRefused},
		"too slow":     {expired, wire.KindDial, "edge-1:10250", open, wire.DialTimeout},
		"given up":     {canceled, wire.KindDial, "edge-1:10250", open, wire.Canceled},
		"denied":       {t.Context(), wire.KindDial, "edge-2:10250", open, wire.Denied},
		"another kind": {t.Context(), wire.KindAPI, "edge-1:10250", open, wire.BadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			d := &kubeletDialer{policy: func() policy { p := testPolicy(); p.kubelet = func() netip.AddrPort { return c.to }; return p }}
			conn, code, err := d.dial(c.ctx, c.kind, c.target)
			if code != c.want || (err == nil) != (c.want == wire.OK) {
				t.Errorf("%s, %v, want %s", code, err, c.want)
			}
			if conn != nil {
				conn.Close()
			}
		})
	}
}

func TestAddresses(t *testing.T) {
	parse := func(in ...string) (out []netip.Addr) {
		for _, s := range in {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	got := nodeAddresses(t.Context(), parse("192.168.1.10", "127.0.0.1", "::ffff:192.168.1.10", "169.254.1.1", "fe80::1", "2001:db8::1", "0.0.0.0", "224.0.0.1"), "x:1")
	if want := parse("192.168.1.10", "2001:db8::1"); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("configured: %v, want %v", got, want)
	}
	// A broker on this machine is reached from loopback, which is nobody's address.
	for _, a := range nodeAddresses(t.Context(), nil, "127.0.0.1:1") {
		if !attestable(a) {
			t.Errorf("detected: %s", a)
		}
	}
	if a, ok := routeSource(t.Context(), "127.0.0.1:1"); ok {
		t.Errorf("route to loopback: %s", a)
	}
}

func TestGenerationNeverGoesBack(t *testing.T) {
	dir := t.TempDir()
	g := newGeneration(dir, slog.New(slog.DiscardHandler))
	for want := uint64(1); want <= 3; want++ {
		if got := g.next(); got != want {
			t.Errorf("%d, want %d", got, want)
		}
	}
	if got := newGeneration(dir, slog.New(slog.DiscardHandler)).next(); got != 4 {
		t.Errorf("after a restart: %d, want 4", got)
	}
	// Torn while running: the count in memory goes on.
	if err := os.WriteFile(g.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := g.next(); got != 4 {
		t.Errorf("after the file was torn: %d, want 4", got)
	}
}

func TestLeftoverSocketIsReplacedALivingOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "a.sock")
	first, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "another edge-agent") {
		t.Errorf("beside a living one: %v", err)
	}
	first.(unixListener).Listener.Close() // as a killed process would: the file stays
	second, err := listenUnix(path)
	if err != nil {
		t.Fatalf("after a killed one: %v", err)
	}
	second.Close()
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
