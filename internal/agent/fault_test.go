package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/pkg/health"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// fault30 are the targets of fault 30, and what else means the same places.
var fault30 = []string{
	"169.254.169.254:80", "169.254.169.254:10250", "[fd00:ec2::254]:10250", "[::ffff:169.254.169.254]:10250", "[fe80::a9fe:a9fe]:10250",
	"metadata.google.internal:80", "metadata.google.internal:10250", "2852039166:10250", "0xa9fea9fe:10250", "169.254.43518:10250",
	"localhost:2379", "localhost:10250", "LOCALHOST:10250", "localhost.:10250", "localhost.localdomain:10250", "ip6-localhost:10250",
	"127.0.0.1:2379", "127.0.0.1:10250", "127.1:10250", "127.0.0.2:10250", "0177.0.0.1:10250", "2130706433:10250", "0:10250", "0.0.0.0:10250", "[::]:10250",
	"[::1]:2379", "[::1]:10250", "[::ffff:127.0.0.1]:2379", "[::ffff:127.0.0.1]:10250", "[::ffff:7f00:1]:10250", "[0:0:0:0:0:ffff:127.0.0.1]:10250", "[::127.0.0.1]:10250",
	"[64:ff9b::7f00:1]:10250", "[2002:7f00:1::]:10250", "127.0.0.1.nip.io:10250", "edge-1.localhost:10250", "localtest.me:10250",
	"edge-1:2379", "edge-1:2380", "edge-1:6443", "192.168.1.10:2379", "[2001:db8::10]:2379",
}

// TestFault30DialToWhatIsNotTheKubelet: metadata services, other ports of the node and loopback in any spelling
// are refused, in the policy and over a live tunnel, with a listener there that would have been reached.
func TestFault30DialToWhatIsNotTheKubelet(t *testing.T) {
	p := testPolicy()
	for _, target := range fault30 {
		if got, err := p.permit(target); err == nil || got.IsValid() || !errors.Is(err, errDenied) {
			t.Errorf("%q: permitted, to %s (%v)", target, got, err)
		}
	}
	d := &kubeletDialer{policy: testPolicy}
	for _, target := range fault30 {
		if conn, code, err := d.dial(t.Context(), wire.KindDial, target); code != wire.Denied || conn != nil {
			t.Errorf("%q: %s, %v", target, code, err)
		}
	}
}

// TestFault30NamesThatResolveThere: the node's own name is compared, never looked up, so a resolver that says
// 169.254.169.254 or 127.0.0.1 changes nothing; and a node that is *named* like such a place reaches only its
// kubelet by it.
func TestFault30NamesThatResolveThere(t *testing.T) {
	asked := 0
	net.DefaultResolver.PreferGo = true
	net.DefaultResolver.Dial = func(context.Context, string, string) (net.Conn, error) {
		asked++
		return nil, errors.New("a name was looked up")
	}
	t.Cleanup(func() { net.DefaultResolver.PreferGo, net.DefaultResolver.Dial = false, nil })
	at := netip.MustParseAddrPort("127.0.0.1:1") // nobody there
	for _, name := range []string{"edge-1", "localhost", "metadata.google.internal", "127.0.0.1.nip.io"} {
		p := testPolicy()
		p.node, p.kubelet = name, func() netip.AddrPort { return at }
		d := &kubeletDialer{policy: func() policy { return p }}
		if _, code, err := d.dial(t.Context(), wire.KindDial, name+":10250"); code != wire.DialRefused || !strings.Contains(err.Error(), at.String()) {
			t.Errorf("the node's own name %s: %s, %v", name, code, err)
		}
		if _, code, _ := d.dial(t.Context(), wire.KindDial, name+":2379"); code != wire.Denied {
			t.Errorf("%s:2379: %s", name, code)
		}
	}
	if asked != 0 {
		t.Errorf("%d names were looked up", asked)
	}
}

func condition(s *Status, typ string) health.Condition {
	for _, c := range s.Conditions {
		if c.Type == typ {
			return c
		}
	}
	return health.Condition{Type: typ, Status: health.Unknown}
}

func storageIs(want health.Status) func(*Status) bool {
	return func(s *Status) bool { return condition(s, condStorage).Status == want }
}

// needsMount skips where this process may not mount.
func needsMount(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		if os.Getenv("MOORING_REQUIRE_ALL") != "" {
			t.Fatalf("mounting a tmpfs is not permitted here: %v", err)
		}
		t.Skipf("needs root, to mount a tmpfs: %v", err)
	}
	_ = unix.Unmount(dir, unix.MNT_DETACH)
}

// TestFault43DiskFullOrReadOnly: the tunnel stays up, and comes up again, on a disk that takes nothing; the
// status says so, and that it is over when it is.
func TestFault43DiskFullOrReadOnly(t *testing.T) {
	needsMount(t)
	s := newShore(t)
	cfg := s.node()
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", cfg.StateDir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(cfg.StateDir, unix.MNT_DETACH) })
	_, stop := runWith(t, cfg, Options{storageEvery: 20 * time.Millisecond})
	until(t, cfg.Socket, "ready", isReady)
	sess := s.session()

	filler := filepath.Join(cfg.StateDir, "filler")
	for name, trouble := range map[string]struct{ make, end func() error }{
		"full": {
			func() error { return fill(filler) },
			func() error { return os.Remove(filler) },
		},
		"read-only": {
			// Laid over itself: what is open for writing stands in the way of a plain remount.
			func() error {
				return errors.Join(unix.Mount(cfg.StateDir, cfg.StateDir, "", unix.MS_BIND, ""),
					unix.Mount("", cfg.StateDir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			},
			func() error { return unix.Unmount(cfg.StateDir, unix.MNT_DETACH) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := trouble.make(); err != nil {
				t.Fatal(err)
			}
			st := until(t, cfg.Socket, "in trouble", storageIs(health.False))
			if !st.Ready || !st.Tunnel.Connected || sess.Err() != nil {
				t.Errorf("status %+v, session %v", st, sess.Err())
			}
			if c := condition(st, condStorage); !strings.Contains(c.Message, cfg.StateDir) || !strings.Contains(st.Summary, c.Message) {
				t.Errorf("summary %q, condition %+v", st.Summary, c)
			}
			// A new session is made all the same, and says that the disk did not take its name.
			_ = sess.Close(wire.Shutdown, "")
			sess = s.session()
			if h := sess.PeerHello(); h.Generation == 0 || h.Instance == "" {
				t.Errorf("hello %+v", h)
			}
			until(t, cfg.Socket, "connected", func(s *Status) bool { return s.Tunnel.Connected })
			if err := trouble.end(); err != nil {
				t.Fatal(err)
			}
			until(t, cfg.Socket, "well again", storageIs(health.True))
		})
	}

	// It is restarted in the middle of it: an enrolled box goes on.
	if err := fill(filler); err != nil {
		t.Fatal(err)
	}
	stop()
	_, stop = runWith(t, cfg, Options{storageEvery: 20 * time.Millisecond})
	if h := s.session().PeerHello(); !h.Volatile {
		t.Errorf("a new process on a full disk says %+v", h)
	}
	st := until(t, cfg.Socket, "connected", func(s *Status) bool { return s.Tunnel.Connected })
	if condition(st, condStorage).Status != health.False {
		t.Errorf("conditions %+v", st.Conditions)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	until(t, cfg.Socket, "well again", func(s *Status) bool { return s.Ready && storageIs(health.True)(s) })
	stop()
	if _, err := mustNew(t, cfg).stopKubelet(t.Context()); err != nil {
		t.Error(err)
	}
}

// fill writes until there is no room for a byte.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for chunk := make([]byte, 64<<10); len(chunk) > 0; {
		if _, err := f.Write(chunk); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				return err
			}
			chunk = chunk[:len(chunk)/2]
		}
	}
	return nil
}

// TestFault43InputOutputError: the same with a disk that gives errors.
func TestFault43InputOutputError(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	var broken atomic.Bool
	o := Options{storageEvery: 10 * time.Millisecond, write: func(path string, data []byte, perm fs.FileMode) error {
		if broken.Load() {
			return fmt.Errorf("write %s: %w", path, syscall.EIO)
		}
		return durable.WriteFile(path, data, perm)
	}}
	a, _ := runWith(t, cfg, o)
	until(t, cfg.Socket, "ready", isReady)
	sess := s.session()
	broken.Store(true)
	_ = sess.Close(wire.Shutdown, "") // its successor's hello is what is written next
	if h := s.session().PeerHello(); h.Instance == "" {
		t.Errorf("hello %+v", h)
	}
	st := until(t, cfg.Socket, "in trouble", func(s *Status) bool { return s.Tunnel.Connected && storageIs(health.False)(s) })
	if c := condition(st, condStorage); !strings.Contains(c.Message, syscall.EIO.Error()) {
		t.Errorf("condition %+v", c)
	}
	// A certificate that is renewed meanwhile serves, and is kept once the disk takes it.
	a.nudge(1)
	for deadline := time.Now().Add(time.Minute); a.joiner.Kept(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the certificate was not renewed")
		}
	}
	broken.Store(false)
	until(t, cfg.Socket, "well again", func(s *Status) bool { return s.Ready && storageIs(health.True)(s) })
	for deadline := time.Now().Add(time.Minute); !a.joiner.Kept(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the certificate was not kept")
		}
	}
}

// runWith is run with options.
func runWith(t *testing.T, cfg *config.Agent, o Options) (*Agent, func()) {
	t.Helper()
	o.Logger = testLogger(t)
	a, err := New(cfg, o)
	if err != nil {
		t.Fatal(err)
	}
	return a, runAgent(t, a)
}
