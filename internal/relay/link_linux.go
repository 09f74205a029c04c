package relay

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// linkQueue is how many packets wait for the link to read them: more than a TCP sends at once on a long fat path, so
// that what is lost is lost by the settings.
const linkQueue = 8192

// maxPacket is the largest that an MTU allows.
const maxPacket = 64 << 10

// End is one end of a Link: a TUN device.
type End struct {
	// Netns is the path of the network namespace that the device is made in; empty: the process's own.
	Netns string
	// Device is its name there.
	Device string
}

// LinkConfig is what a Link needs.
type LinkConfig struct {
	// Near is the end where packets enter the way up, Far that where they enter the way down.
	Near, Far End
	// Seed makes the losses and jitters of a run repeatable, as far as the packets come in the same order.
	Seed uint64
	// Settings are those to begin with.
	Settings Settings
}

// Link is a stretch of bad network that IP packets pass, between two kernels' network stacks: what is lost is repeated
// by them, by their rules, and what is too large is theirs to find out. It needs root, and Linux. Addresses, routes and
// MTU are the maker's to set, once it is started, as are the devices to bring up: they go with Close.
//
// Of the Settings a Path's MaxDatagram is the size of a whole IP packet here, Stall is a Hole, and IdleTimeout does
// nothing: a link knows of no flows. All methods may be called at any time from any goroutine.
type Link struct {
	near, far *os.File
	onUp      *schedule
	onDown    *schedule
	closed    chan struct{}
	close     sync.Once
	wg        sync.WaitGroup

	mu       sync.Mutex // guards the following
	set      Settings
	up, down lane
}

// StartLink makes the devices of a link and sets it going; Close ends it and removes them.
func StartLink(c LinkConfig) (*Link, error) {
	near, err := openTUN(c.Near)
	if err != nil {
		return nil, err
	}
	far, err := openTUN(c.Far)
	if err != nil {
		_ = near.Close()
		return nil, err
	}
	l := &Link{
		near: near, far: far, set: c.Settings,
		onUp: newSchedule(), onDown: newSchedule(), closed: make(chan struct{}),
		up: newLane(c.Seed, 1), down: newLane(c.Seed, 2),
	}
	l.wg.Go(func() { l.carry(near, far, &l.up, &l.set.Up, l.onUp) })
	l.wg.Go(func() { l.carry(far, near, &l.down, &l.set.Down, l.onDown) })
	l.wg.Go(func() { l.onUp.run(l.closed) })
	l.wg.Go(func() { l.onDown.run(l.closed) })
	return l, nil
}

// Set changes the settings, for what comes from now on; what is on its way arrives as it was to.
func (l *Link) Set(change func(*Settings)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.set)
}

// Stats returns what the link has seen. It counts no flows.
func (l *Link) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Stats{Up: l.up.stats, Down: l.down.stats}
}

// Close ends the link, and returns when nothing of it runs any more and its devices are gone.
func (l *Link) Close() {
	l.close.Do(func() {
		close(l.closed)
		_ = l.near.Close()
		_ = l.far.Close()
	})
	l.wg.Wait()
}

// carry takes what the kernel sends to one device to the other.
func (l *Link) carry(from, to *os.File, lane *lane, path *Path, s *schedule) {
	buf := make([]byte, maxPacket)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return // closed
		}
		due, ok := l.admit(buf[:n], lane, path)
		if !ok {
			continue
		}
		p := takePacket(buf[:n])
		s.add(due, func() {
			_, _ = to.Write(*p) // an error says that the device is down, or gone
			l.mu.Lock()
			lane.stats.InFlight -= int64(len(*p))
			l.mu.Unlock()
			packets.Put(p)
		})
	}
}

// admit returns when a packet arrives, and whether it does.
func (l *Link) admit(b []byte, lane *lane, path *Path) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := *path
	p.Hole = p.Hole || p.Stall || l.set.DropUDP && isUDP(b)
	return lane.datagram(p, time.Now(), len(b))
}

// packets holds room for those on their way.
var packets = sync.Pool{New: func() any { b := make([]byte, 0, 1500); return &b }}

func takePacket(b []byte) *[]byte {
	p := packets.Get().(*[]byte)
	*p = append((*p)[:0], b...)
	return p
}

// isUDP looks at an IP packet. Of one in IPv6 with extension headers it says no.
func isUDP(b []byte) bool {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return b[9] == unix.IPPROTO_UDP
	case len(b) >= 40 && b[0]>>4 == 6:
		return b[6] == unix.IPPROTO_UDP
	}
	return false
}

// openTUN makes a device. The runtime's poller serves the file, so a read of it holds up no thread.
func openTUN(e End) (*os.File, error) {
	var fd int
	err := inNetns(e.Netns, func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		if err = setUpTUN(fd, e.Device); err != nil {
			_ = unix.Close(fd)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make the device %q in the network namespace %q: %w", e.Device, e.Netns, err)
	}
	return os.NewFile(uintptr(fd), "tun "+e.Device), nil
}

// setUpTUN gives the device its name and its queue.
func setUpTUN(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	req.SetUint32(linkQueue)
	if err := unix.IoctlIfreq(sock, unix.SIOCSIFTXQLEN, req); err != nil {
		return fmt.Errorf("SIOCSIFTXQLEN: %w", err)
	}
	return nil
}

// inNetns runs f on a thread that is in the network namespace at path, or where it is if path is empty.
func inNetns(path string, f func() error) error {
	if path == "" {
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		back, err := enter(path)
		if err != nil {
			done <- err
			return
		}
		err = f()
		if berr := back(); berr != nil {
			done <- errors.Join(err, berr)
			return // and the thread with it
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// enter takes the thread into a network namespace. back returns it to where it was.
func enter(path string) (back func() error, err error) {
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the thread's own network namespace: %w", err)
	}
	there, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		_ = unix.Close(home)
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(there)
	if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
		_ = unix.Close(home)
		return nil, fmt.Errorf("enter %s: %w", path, err)
	}
	return func() error {
		defer unix.Close(home)
		return unix.Setns(home, unix.CLONE_NEWNET)
	}, nil
}
