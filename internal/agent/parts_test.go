package agent

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/mooring-edge/mooring/internal/durable"
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

// say is what the box says of itself at its next session.
func say(l *lineage) wire.Hello {
	var h wire.Hello
	l.next(&h)
	return h
}

func testLineage(dir string) *lineage {
	return newLineage(dir, durable.WriteFile, slog.New(slog.DiscardHandler))
}

func TestGenerationNeverGoesBack(t *testing.T) {
	dir := t.TempDir()
	g := testLineage(dir)
	for want := uint64(1); want <= 3; want++ {
		if got := say(g).Generation; got != want {
			t.Errorf("%d, want %d", got, want)
		}
	}
	if got := say(testLineage(dir)).Generation; got != 4 {
		t.Errorf("after a restart: %d, want 4", got)
	}
	// Torn while running: the count in memory goes on.
	if err := os.WriteFile(g.path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := say(g).Generation; got != 4 {
		t.Errorf("after the file was torn: %d, want 4", got)
	}
	// The form of an earlier version.
	if err := os.WriteFile(g.path, []byte("41\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if h := say(testLineage(dir)); h.Generation != 42 || h.Instance == "" || len(h.Ancestors) != 0 {
		t.Errorf("from the old form: %+v", h)
	}
}

func TestLineage(t *testing.T) {
	dir := t.TempDir()
	l := testLineage(dir)
	first := say(l)
	if again := say(l); again.Instance != first.Instance || again.Volatile || len(again.Ancestors) != 0 {
		t.Errorf("before a session was accepted: %+v, then %+v", first, again)
	}
	l.accepted()
	second := say(l)
	if second.Instance == first.Instance || !slices.Equal(second.Ancestors, []string{first.Instance}) {
		t.Errorf("after it was accepted: %+v, then %+v", first, second)
	}
	if err := second.Validate(); err != nil {
		t.Error(err)
	}
	// The broker knows of a later instance than this one, which is not of this box's line: the next one parts.
	l.superseded()
	if third := say(l); third.Instance == second.Instance || !slices.Equal(third.Ancestors, []string{second.Instance, first.Instance}) {
		t.Errorf("after it was superseded: %+v", third)
	}
	// A box that loses power again and again before it gets through: what the broker knows it by stays.
	for range 30 {
		h := say(testLineage(dir))
		if err := h.Validate(); err != nil || !slices.Contains(h.Ancestors, first.Instance) || h.Instance == second.Instance {
			t.Fatalf("%+v: %v", h, err)
		}
	}
	// Two boxes with one disk's past part here.
	data, err := os.ReadFile(l.path)
	if err != nil {
		t.Fatal(err)
	}
	clone := t.TempDir()
	if err := os.WriteFile(filepath.Join(clone, "generation"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	a, b := say(testLineage(dir)), say(testLineage(clone))
	if a.Instance == b.Instance || !slices.Equal(a.Ancestors, b.Ancestors) {
		t.Errorf("a box and its clone: %+v, %+v", a, b)
	}
}

func TestLineageOnADiskThatTakesNothing(t *testing.T) {
	dir := t.TempDir()
	full := false
	l := newLineage(dir, func(path string, data []byte, perm fs.FileMode) error {
		if full {
			return syscall.ENOSPC
		}
		return durable.WriteFile(path, data, perm)
	}, slog.New(slog.DiscardHandler))
	first := say(l)
	l.accepted()
	full = true
	lost := say(l)
	if !lost.Volatile || !slices.Equal(lost.Ancestors, []string{first.Instance}) {
		t.Errorf("on a full disk: %+v after %+v", lost, first)
	}
	full = false
	if kept := say(l); kept.Volatile || kept.Instance != lost.Instance {
		t.Errorf("with room again: %+v after %+v", kept, lost)
	}
	full = true
	if h := say(l); h.Volatile || h.Instance != lost.Instance {
		t.Errorf("the instance is on disk, only the count is not: %+v", h)
	}
}

// FuzzLineage: whatever is on disk, what is taken of it can be sent.
func FuzzLineage(f *testing.F) {
	f.Add([]byte("17\n"))
	f.Add([]byte(`{"generation":3,"instances":["0123456789abcdef","fedcba9876543210"],"accepted":"fedcba9876543210"}`))
	f.Add([]byte(`{"instances":[""]}`))
	f.Add([]byte(`{"generation":-1,"instances":["x"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		past, err := parseLineage(data)
		if err != nil {
			return
		}
		l := &lineage{path: "x", write: func(string, []byte, fs.FileMode) error { return nil }, logger: slog.New(slog.DiscardHandler), read: true, past: past}
		for range 3 {
			if err := say(l).Validate(); err != nil {
				t.Fatal(err)
			}
			l.accepted()
		}
	})
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
