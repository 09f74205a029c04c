//go:build linux

package relay

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	nearAddr = "10.99.0.1"
	farAddr  = "10.99.0.2"
)

// linked is a Link between two network namespaces of the test's own.
type linked struct {
	*Link
	near, far string // paths of the namespaces
}

// startLink makes a link whose devices have addresses and are up.
func startLink(t *testing.T, mtu int, s Settings) *linked {
	t.Helper()
	needRoot(t)
	id := fmt.Sprintf("moor-link%05x", rand.N(1<<20))
	l := &linked{near: "/run/netns/" + id + "-near", far: "/run/netns/" + id + "-far"}
	for _, path := range []string{l.near, l.far} {
		name := strings.TrimPrefix(path, "/run/netns/")
		run(t, "ip", "netns", "add", name)
		t.Cleanup(func() { run(t, "ip", "netns", "del", name) })
		err := inNetns(path, func() error { // it has things of its own to say
			return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	link, err := StartLink(LinkConfig{Near: End{l.near, "wan"}, Far: End{l.far, "wan"}, Settings: s})
	if err != nil {
		t.Fatal(err)
	}
	l.Link = link
	t.Cleanup(link.Close)
	for path, addrs := range map[string][2]string{l.near: {nearAddr, farAddr}, l.far: {farAddr, nearAddr}} {
		run(t, "nsenter", "--net="+path, "ip", "addr", "add", addrs[0], "peer", addrs[1], "dev", "wan")
		run(t, "nsenter", "--net="+path, "ip", "link", "set", "wan", "mtu", fmt.Sprint(mtu), "up")
	}
	return l
}

func needRoot(t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("ip")
	if os.Geteuid() == 0 && err == nil {
		return
	}
	if os.Getenv("MOORING_REQUIRE_ALL") == "1" {
		t.Fatal("needs root, and ip(8)")
	}
	t.Skip("needs root, and ip(8): network namespaces and TUN devices")
}

func run(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

// udp makes a socket at either end, connected to each other.
func (l *linked) udp(t *testing.T) (near, far net.Conn) {
	t.Helper()
	sock := func(ns, from, to string) (c net.Conn) {
		err := inNetns(ns, func() (err error) {
			c, err = net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from), Port: 9}, &net.UDPAddr{IP: net.ParseIP(to), Port: 9})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(patience())
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	return sock(l.near, nearAddr, farAddr), sock(l.far, farAddr, nearAddr)
}

// tcp makes a connection through the link.
func (l *linked) tcp(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	var (
		ln  net.Listener
		c   net.Conn
		err error
	)
	err = inNetns(l.far, func() (err error) { ln, err = net.Listen("tcp", farAddr+":9"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	err = inNetns(l.near, func() (err error) { c, err = net.DialTimeout("tcp4", farAddr+":9", 10*time.Second); return err })
	if err != nil {
		t.Fatal(err)
	}
	other, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{c, other} {
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		t.Cleanup(func() { _ = c.Close() })
	}
	return c.(*net.TCPConn), other.(*net.TCPConn)
}

func TestLinkUDP(t *testing.T) {
	l := startLink(t, 1500, Settings{Up: Path{Delay: 30 * time.Millisecond}, Down: Path{Delay: 20 * time.Millisecond}})
	near, far := l.udp(t)
	began := time.Now()
	passes(t, near, far)
	if d := time.Since(began); d < 30*time.Millisecond {
		t.Errorf("up took %s, want the delay at least", d)
	}
	began = time.Now()
	passes(t, far, near)
	if d := time.Since(began); d < 20*time.Millisecond {
		t.Errorf("down took %s, want the delay at least", d)
	}
	l.Set(func(s *Settings) { s.Up = Path{MaxDatagram: 1300} })
	_, _ = near.Write(make([]byte, 1301-28))
	_, _ = near.Write(make([]byte, 1300-28))
	if n, err := far.Read(make([]byte, 2000)); n != 1300-28 || err != nil {
		t.Errorf("read %d bytes, %v; want the datagram that fits", n, err)
	}
	if s := l.Stats(); s.Up.TooBig != 1 || s.Up.Largest != 1300 || s.Up.Packets != 2 || s.Down.Packets != 1 {
		t.Errorf("stats %+v", s)
	}
	for name, set := range map[string]Settings{"DropUDP": {DropUDP: true}, "Hole": {Up: Path{Hole: true}}, "Stall": {Up: Path{Stall: true}}, "Loss": {Up: Path{Loss: 1}}} {
		before := l.Stats().Up.Lost
		l.Set(func(s *Settings) { *s = set })
		_, _ = near.Write([]byte("lost"))
		silent(t, far)
		if now := l.Stats().Up.Lost; now != before+1 {
			t.Errorf("%s: %d packets lost, then %d", name, before, now)
		}
	}
}

// TestLinkTCP: a loss is repeated by the kernel that sent it, which is what a Relay can not show.
func TestLinkTCP(t *testing.T) {
	path := Path{Delay: 5 * time.Millisecond, Loss: 0.02}
	l := startLink(t, 1500, Settings{Up: path, Down: path, DropUDP: true})
	near, far := l.tcp(t)
	const total = 4 << 20
	go func() {
		_, _ = near.Write(make([]byte, total))
		_ = near.CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, far); n != total || err != nil {
		t.Fatalf("%d of %d bytes, %v", n, total, err)
	}
	info := tcpInfo(t, near)
	if s := l.Stats(); s.Up.Lost == 0 || info.Total_retrans == 0 {
		t.Errorf("stats %+v, %d segments repeated", s, info.Total_retrans)
	}
	_ = far.Close()
	if n, err := near.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v; want EOF", n, err)
	}
}

// TestLinkKeepsUp: at 100 Mbit/s and 1200 bytes a packet nothing is lost but by the settings, and the rate is near.
func TestLinkKeepsUp(t *testing.T) {
	fat := Path{Delay: 10 * time.Millisecond, Rate: 100e6 / 8, Queue: 10 * time.Second}
	l := startLink(t, 1200, Settings{Up: fat, Down: fat})
	near, far := l.tcp(t)
	const total = 16 << 20
	began := time.Now()
	go func() { _, _ = near.Write(make([]byte, total)) }()
	if n, err := io.CopyN(io.Discard, far, total); err != nil {
		t.Fatalf("%d of %d bytes, %v", n, total, err)
	}
	took := time.Since(began)
	s, info := l.Stats(), tcpInfo(t, near)
	t.Logf("%.0f Mbit/s, %d packets, %d repeated", total*8/took.Seconds()/1e6, s.Up.Packets, info.Total_retrans)
	if s.Up.Lost > 0 || info.Total_retrans > 0 {
		t.Errorf("stats %+v, %d segments repeated; want none lost", s, info.Total_retrans)
	}
	if ideal := span(total, fat.Rate); took < ideal-ideal/50 || took > 3*ideal {
		t.Errorf("16 MiB took %s; at this rate they take %s", took, ideal)
	}
}

func tcpInfo(t *testing.T, c *net.TCPConn) (info *unix.TCPInfo) {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	cerr := rc.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err = errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	return info
}

// TestLinkCloses: in the middle of things, twice, and its devices are gone.
func TestLinkCloses(t *testing.T) {
	l := startLink(t, 1500, Settings{Up: Path{Delay: time.Hour}})
	near, _ := l.udp(t)
	_, _ = near.Write([]byte("on its way"))
	l.Close()
	l.Close()
	for _, path := range []string{l.near, l.far} {
		err := inNetns(path, func() error { _, err := net.InterfaceByName("wan"); return err })
		if err == nil {
			t.Errorf("a device is left in %s", path)
		}
	}
	if _, err := StartLink(LinkConfig{Near: End{l.near, "wan"}, Far: End{"/run/netns/moor-none", "wan"}}); err == nil {
		t.Error("a link was made to nowhere")
	}
	if err := inNetns(l.near, func() error { _, err := net.InterfaceByName("wan"); return err }); err == nil {
		t.Error("a link that could not be made has left a device")
	}
}

func TestIsUDP(t *testing.T) {
	v4, v6 := make([]byte, 28), make([]byte, 48)
	v4[0], v4[9] = 0x45, unix.IPPROTO_UDP
	v6[0], v6[6] = 0x60, unix.IPPROTO_UDP
	tcp := make([]byte, 40)
	tcp[0], tcp[9] = 0x45, unix.IPPROTO_TCP
	if !isUDP(v4) || !isUDP(v6) || isUDP(tcp) || isUDP(nil) || isUDP(v4[:12]) || isUDP(v6[:30]) {
		t.Error("UDP is not told from what it is not")
	}
}
