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
	// patientSize and patientTime are the same once patientAfter reads in a row had to wait, and much came each time: a long transfer, by one who is no
	// quicker than that.
	patientSize  = 3 * bulk.LargePiece / 4
	patientTime  = 5 * time.Millisecond
	patientAfter = 5
)

// gatherer reads from a socket from which many bytes come in small pieces, and has it wake the reader for several of them at once. Who says much to
// a kubelet or an API server, or hears it, writes a record of TLS at a time; each would wake this end, and all those behind it.
type gatherer struct {
	conn *net.TCPConn
	raw  syscall.RawConn
	low  int // from how many bytes on the socket wakes; 0: for anything
	row  int // reads in a row that had to wait
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

// wanted says whether to gather after n bytes were read at once. A source that is quick has as much at hand anyway: to look, and to set a limit of time,
// would be for nothing.
func (g *gatherer) wanted(n int) bool { return n < bufferSize || g.row > 0 }

// patient says that the next read waits for more than a small piece holds.
func (g *gatherer) patient() bool { return g.row >= patientAfter }

// read reads what there is once that is much, or some time has passed. Without bytes and an error there was nothing.
func (g *gatherer) read(p []byte) (n int, err error) {
	size, limit := gatherSize, gatherTime
	if g.patient() {
		size, limit = patientSize, patientTime
	}
	if size = min(size, len(p)); g.low != size {
		g.mark(size)
		g.low = size
	}
	looked, waited := false, false
	_ = g.conn.SetReadDeadline(time.Now().Add(limit))
	werr := g.raw.Read(func(fd uintptr) bool {
		if !looked {
			looked = true
			if there, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ); err == nil && there < size {
				waited = true
				return false
			}
		}
		n, err = bulk.ReadSocket(fd, p)
		return err != syscall.EAGAIN
	})
	_ = g.conn.SetReadDeadline(time.Time{})
	if waited {
		g.row++
	} else {
		g.row = 0
	}
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
	if g.low > 0 {
		g.mark(1)
	}
	g.low, g.row = 0, 0
}
