package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A session's socket is pkg/tunnel's own, and nobody is handed it. What a bad network does to it is done through its
// descriptor, which is found by its address.

// cutSocket aborts a TCP connection of this process: the other side gets a reset.
func cutSocket(local net.Addr) error {
	return withSocket(local, func(fd int) error {
		// To connect to nowhere is to disconnect.
		nowhere := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&nowhere)), unsafe.Sizeof(nowhere))
		if errno != 0 {
			return fmt.Errorf("disconnect the socket at %s: %w", local, errno)
		}
		return nil
	})
}

// deafenSocket has a socket of this process get nothing any more; what it sends still arrives.
func deafenSocket(local net.Addr) error {
	return withSocket(local, func(fd int) error {
		drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
		err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]})
		if err != nil {
			return fmt.Errorf("deafen the socket at %s: %w", local, err)
		}
		return nil
	})
}

func withSocket(local net.Addr, do func(fd int) error) error {
	kind, port := unix.SOCK_STREAM, 0
	switch a := local.(type) {
	case *net.TCPAddr:
		port = a.Port
	case *net.UDPAddr:
		kind, port = unix.SOCK_DGRAM, a.Port
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || !strings.HasPrefix(link, "socket:") {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if t, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && t == kind && portOf(fd) == port {
			return do(fd)
		}
	}
	return fmt.Errorf("no socket of this process is at %s any more", local)
}

func portOf(fd int) int {
	at, err := unix.Getsockname(fd)
	if err != nil {
		return 0
	}
	switch a := at.(type) {
	case *unix.SockaddrInet4:
		return a.Port
	case *unix.SockaddrInet6:
		return a.Port
	}
	return 0
}
