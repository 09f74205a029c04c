package splice

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"testing"
)

// TestLargeBuffersAreBounded: who comes too late does with the others, and each that was taken comes back.
func TestLargeBuffersAreBounded(t *testing.T) {
	most := largeEach * runtime.GOMAXPROCS(0)
	var taken []*[largeSize]byte
	for range most {
		b := takeLarge()
		if b == nil {
			t.Fatalf("only %d of %d", len(taken), most)
		}
		taken = append(taken, b)
	}
	if takeLarge() != nil {
		t.Errorf("more than %d", most)
	}
	giveLarge(nil)
	for _, b := range taken {
		giveLarge(b)
	}
	if n := largeInUse.Load(); n != 0 {
		t.Errorf("%d are in use", n)
	}
}

// TestMuchGoesInLargePieces: once a buffer was filled the next pieces are larger, all bytes arrive, and the buffer is given back.
func TestMuchGoesInLargePieces(t *testing.T) {
	const total = 4 << 20
	want := bytes.Repeat([]byte("0123456789abcdef"), total/16)
	src, dst := &reader{Reader: bytes.NewReader(want)}, &writer{}
	n, rerr, werr := copyAll(newSide(src), newSide(dst))
	if n != total || rerr != nil || werr != nil || !bytes.Equal(dst.got.Bytes(), want) {
		t.Fatalf("%d bytes, %v, %v", n, rerr, werr)
	}
	if dst.largest != largeSize {
		t.Errorf("the largest piece has %d bytes, want %d", dst.largest, largeSize)
	}
	if n := largeInUse.Load(); n != 0 {
		t.Errorf("%d are in use", n)
	}
}

type reader struct {
	net.Conn
	io.Reader
}

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
