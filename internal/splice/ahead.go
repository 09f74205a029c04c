package splice

import (
	"net"
	"os"
	"syscall"

	"github.com/mooring-edge/mooring/internal/bulk"
)

// messageSize is how long a message is at the most that a TryWrite is given.
const messageSize = 4 << 10

// deliver has what src gets go to dst at once, by who reads it for src, as long as that waits for nothing: for dst's lock, for room in its socket or
// window. It is for a src that has Deliver. stop ends it, and returns how many bytes went that way.
func deliver(src, dst *side) (stop func() int64) {
	d, ok := src.Conn.(deliverer)
	put := dst.putter()
	if !ok || put == nil {
		return func() int64 { return 0 }
	}
	var total int64
	d.Deliver(func(p []byte) int {
		if len(p) > messageSize || src.tail.Load() || !dst.wmu.TryLock() { // a tail's pauses are counted by its reads
			return 0
		}
		defer dst.wmu.Unlock()
		n := put(p)
		total += int64(n)
		return n
	})
	return func() int64 {
		d.Deliver(nil)
		return total
	}
}

// putter returns what writes to d as much as that takes without waiting; nil: nothing can. wmu is held when it is called. It has no error: the
// next Write has it.
//
// With TLS it could wait if the other direction filled the socket just after it was asked, with answers to what the peer has TLS do; that ends with
// the peer's connection.
func (d *side) putter() func(p []byte) int {
	switch c := d.Conn.(type) {
	case tryWriter:
		return func(p []byte) int {
			if !c.TryWrite(p) {
				return 0
			}
			return len(p)
		}
	case *net.TCPConn, *net.UnixConn:
		return d.socketPutter(c.(syscall.Conn))
	}
	if d.bulk == nil {
		return nil
	}
	return func(p []byte) int {
		if !d.bulk.Writable() {
			return 0
		}
		n, err := d.Conn.Write(p)
		d.noteWrite(err)
		return n
	}
}

func (d *side) socketPutter(c syscall.Conn) func(p []byte) int {
	raw, err := c.SyscallConn()
	if err != nil || bulk.WriteSocket == nil {
		return nil
	}
	var n int
	var p []byte
	try := func(fd uintptr) bool { // once: the hot path makes no closures
		n, err = bulk.WriteSocket(fd, p)
		return true
	}
	return func(b []byte) int {
		n, err, p = 0, nil, b
		_ = raw.Write(try)
		if p = nil; err != nil && err != syscall.EAGAIN {
			d.noteWrite(err)
			d.told = os.NewSyscallError("write", err)
		}
		return max(n, 0)
	}
}
