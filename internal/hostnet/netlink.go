package hostnet

import (
	"encoding/binary"
	"errors"
	"iter"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long the kernel's answer may take, which is there when the request was taken.
const patience = 5 * time.Second

var errAnswer = errors.New("the kernel's answer over netlink can't be read")

// request sends one message and returns the body of what comes back; nil for a bare acknowledgement.
func request(kind uint16, flags int, body []byte) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return nil, err
	}
	msg := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	msg = append(msg, body...)
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	binary.NativeEndian.PutUint16(msg[4:], kind)
	if kind != unix.RTM_GETROUTE { // that one is answered in any case
		flags |= unix.NLM_F_ACK
	}
	binary.NativeEndian.PutUint16(msg[6:], uint16(unix.NLM_F_REQUEST|flags))
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	buf := make([]byte, 8<<10)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return nil, err
	}
	return body1(buf[:n])
}

// body1 is the body of the first message in an answer, or the error that it is.
func body1(b []byte) ([]byte, error) {
	if len(b) < unix.SizeofNlMsghdr {
		return nil, errAnswer
	}
	size, kind := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[4:])
	if size < unix.SizeofNlMsghdr || int64(size) > int64(len(b)) {
		return nil, errAnswer
	}
	body := b[unix.SizeofNlMsghdr:size]
	if kind != unix.NLMSG_ERROR {
		return body, nil
	}
	if len(body) < 4 {
		return nil, errAnswer
	}
	if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
		return nil, unix.Errno(-code)
	}
	return nil, nil
}

// attribute appends one, padded.
func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// attributes goes through those in b, as far as they can be read.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofRtAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofRtAttr || size > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED, b[unix.SizeofRtAttr:size]) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}
