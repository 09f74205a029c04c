package tunnel

import (
	"bufio"
	"io"
	"sync/atomic"
)

// frameReader reads yamux's frames. What streams carry goes to their inboxes; what reads from it, which is yamux, gets to see what is no
// stream's, and nothing else. So what arrives is copied once, and can be read before its frame is
// whole.
//
// It sees that the frames keep to what the other side may do.
type frameReader struct {
	windows *yamuxWindows
	theirs  uint32                // the last bit of the numbers that the other side gives
	opened  func(id uint32) error // is told of each stream that it opens; nil: nobody is
	away    atomic.Bool           // it takes no more streams
	r       *bufio.Reader
	more    func() bool // the next record of TLS is at hand
	header  [yamuxHeader]byte
	left    []byte // of header: what yamux is still to see
}

// headBuffer holds a few headers; more would only be copied once more.
const headBuffer = 256

func newFrameReader(r io.Reader, more func() bool, windows *yamuxWindows) *frameReader {
	return &frameReader{windows: windows, theirs: 1, more: more, r: bufio.NewReaderSize(r, headBuffer)}
}

// Read implements io.Reader.
func (f *frameReader) Read(p []byte) (int, error) {
	for len(f.left) == 0 {
		if err := f.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.left)
	f.left = f.left[n:]
	return n, nil
}

// next reads one frame.
func (f *frameReader) next() error {
	if _, err := io.ReadFull(f.r, f.header[:]); err != nil {
		return err
	}
	h := yamuxFrame(f.header[:])
	if h.version() != 0 || h.kind() > yamuxTypeWindow {
		if h.version() == 0 && h.kind() == yamuxTypePing {
			return errYamuxPing
		}
		if h.kind() == yamuxTypeGoAway {
			f.away.Store(true)
		}
		f.left = f.header[:] // of what must not be, yamux ends it
		return nil
	}
	if h.has(yamuxFlagSYN) && h.stream()&1 != f.theirs {
		return errYamuxNumber
	}
	if err := checkFrame(f.windows, h); err != nil {
		return err
	}
	if h.kind() == yamuxTypeData {
		if err := f.body(h); err != nil {
			return err
		}
	}
	if h.has(yamuxFlagFIN | yamuxFlagRST) {
		f.windows.ended(h.stream(), h.has(yamuxFlagRST))
	}
	if h.has(yamuxFlagSYN) && f.opened != nil {
		return f.opened(h.stream())
	}
	return nil
}

func (f *frameReader) body(h yamuxFrame) error {
	if in := f.windows.inbox(h.stream()); in != nil {
		return in.fill(f.r, int(h.length()), f.more)
	}
	return discardN(f.r, int64(h.length())) // the stream was closed here
}
