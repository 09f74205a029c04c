package splice

import (
	"bytes"
	"io"
	"net"
	"testing"

	"github.com/mooring-edge/mooring/internal/bulk"
)

// TestMuchGoesInLargePieces: once a buffer was filled the next pieces are larger, all bytes arrive, and the buffer is given back.
func TestMuchGoesInLargePieces(t *testing.T) {
	const total = 4 << 20
	want := bytes.Repeat([]byte("0123456789abcdef"), total/16)
	src, dst := &reader{Reader: bytes.NewReader(want)}, &writer{}
	n, rerr, werr := copyAll(newSide(src), newSide(dst))
	if n != total || rerr != nil || werr != nil || !bytes.Equal(dst.got.Bytes(), want) {
		t.Fatalf("%d bytes, %v, %v", n, rerr, werr)
	}
	if dst.largest != bulk.LargePiece {
		t.Errorf("the largest piece has %d bytes, want %d", dst.largest, bulk.LargePiece)
	}
}

type reader struct {
	net.Conn
	io.Reader
}

// WaitRead implements waiter.
func (r *reader) WaitRead() error { return nil }

func (r *reader) Read(p []byte) (int, error) { return r.Reader.Read(p) }

type writer struct {
	net.Conn
	got     bytes.Buffer
	largest int
}

func (w *writer) Write(p []byte) (int, error) {
	w.largest = max(w.largest, len(p))
	return w.got.Write(p)
}
