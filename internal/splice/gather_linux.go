package splice

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mooring-edge/mooring/internal/bulk"
)

const (
	// gatherSize is how many bytes are waited for where many flow.
	gatherSize = 3 * bufferSize / 4
	// gatherTime is for how long.
	gatherTime = time.Millisecond
)

// gatherer reads from a socket from which many bytes come in small pieces, and has it wake the reader for several of them at once. Who says much to
// a kubelet or an API server, or hears it, writes a record of TLS at a time; each would wake this end, and all those behind it.
type gatherer struct {
	conn *net.TCPConn
	raw  syscall.RawConn
	low  bool // the socket wakes for gatherSize alone
}

// newGatherer returns nil where c is no TCP connection.
func newGatherer(c net.Conn) *gatherer {
	t, ok := c.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil
	}
	return &gatherer{conn: t, raw: raw}
}

// mark sets from how many bytes on the socket wakes its reader, one that waits already too. It may be called beside read.
func (g *gatherer) mark(n int) {
	_ = g.raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, n) })
}

// read reads what there is once that is much, or gatherTime has passed. Without bytes and an error there was nothing.
func (g *gatherer) read(p []byte) (n int, err error) {
	if !g.low {
		g.mark(gatherSize)
		g.low = true
	}
	looked := false
	_ = g.conn.SetReadDeadline(time.Now().Add(gatherTime))
	werr := g.raw.Read(func(fd uintptr) bool {
		if !looked {
			looked = true
			if there, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ); err == nil && there < min(gatherSize, len(p)) {
				return false
			}
		}
		n, err = bulk.ReadSocket(fd, p)
		return err != syscall.EAGAIN
	})
	_ = g.conn.SetReadDeadline(time.Time{})
	if werr != nil {
		if !errors.Is(werr, os.ErrDeadlineExceeded) {
			return 0, werr
		}
		_ = g.raw.Read(func(fd uintptr) bool {
			n, err = bulk.ReadSocket(fd, p)
			return true
		})
	}
	switch {
	case err == syscall.EAGAIN:
		return 0, nil
	case err != nil:
		return 0, bulk.ReadError(g.conn, err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// end has the socket wake its reader for anything again.
func (g *gatherer) end() {
	if g.low {
		g.mark(1)
		g.low = false
	}
}
