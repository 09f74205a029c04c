package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// What the target is asked for, in the first byte of a connection. After opDown and opUp follows how many bytes, in 8 bytes.
const (
	opDown = 'd' // it sends that many
	opUp   = 'u' // it takes that many, then sends one
	opEcho = 'e' // it answers each byte with itself
)

const blockSize = 64 << 10

// serveTarget answers on l until ctx ends.
func serveTarget(ctx context.Context, l net.Listener) error {
	return serveConns(ctx, l, func(c net.Conn) { _ = answer(c) })
}

func answer(c net.Conn) error {
	var op [1]byte
	if _, err := io.ReadFull(c, op[:]); err != nil {
		return err
	}
	if op[0] == opEcho {
		_, err := io.CopyBuffer(onlyWriter{c}, onlyReader{c}, make([]byte, 4<<10))
		return err
	}
	var size [8]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint64(size[:]))
	switch op[0] {
	case opDown:
		return send(c, n)
	case opUp:
		if err := discard(c, n); err != nil {
			return err
		}
		_, err := c.Write([]byte{1})
		return err
	}
	return fmt.Errorf("unknown operation %q", op[0])
}

// send writes n bytes.
func send(w io.Writer, n int64) error {
	block := make([]byte, blockSize)
	for n > 0 {
		m, err := w.Write(block[:min(n, blockSize)])
		if err != nil {
			return err
		}
		n -= int64(m)
	}
	return nil
}

// discard reads n bytes.
func discard(r io.Reader, n int64) error {
	block := make([]byte, blockSize)
	for n > 0 {
		m, err := r.Read(block[:min(n, blockSize)])
		n -= int64(m)
		if err != nil && n > 0 {
			return fmt.Errorf("%d bytes short: %w", n, err)
		}
	}
	return nil
}

// onlyReader and onlyWriter hide what would have the kernel copy.
type onlyReader struct{ io.Reader }
type onlyWriter struct{ io.Writer }

// serveConns has each connection of l handled in a goroutine of its own, and closed after that.
func serveConns(ctx context.Context, l net.Listener, handle func(net.Conn)) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}
