package tunnel

import (
	"bufio"
	"io"
)

// frameReader reads yamux's frames. What streams carry goes to their inboxes; what reads from it, which is yamux, gets to see the frames by which
// streams begin and end, without their bytes, and nothing else. So what arrives is copied once, and can be read before its frame is
// whole.
//
// It sees that the frames keep to what the other side may do. Yamux itself knows of no bytes, and so of no window.
type frameReader struct {
	windows *yamuxWindows
	r       *bufio.Reader
	more    func() bool // the next record of TLS is at hand
	header  [yamuxHeader]byte
	left    []byte // of header: what yamux is still to see
}

// headBuffer holds a few headers; more would only be copied once more.
const headBuffer = 256

func newFrameReader(r io.Reader, more func() bool, windows *yamuxWindows) *frameReader {
	return &frameReader{windows: windows, more: more, r: bufio.NewReaderSize(r, headBuffer)}
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
	if h.version() != 0 {
		f.left = f.header[:] // yamux ends it
		return nil
	}
	if err := checkFrame(f.windows, h); err != nil {
		return err
	}
	if h.kind() <= yamuxTypeWindow {
		if h.kind() == yamuxTypeData {
			if err := f.body(h); err != nil {
				return err
			}
		}
		if h.has(yamuxFlagFIN | yamuxFlagRST) {
			f.windows.ended(h.stream(), h.has(yamuxFlagRST))
		}
		if !h.has(yamuxFlagSYN | yamuxFlagACK | yamuxFlagFIN | yamuxFlagRST) {
			return nil
		}
		h.setLength(0)
	}
	f.left = f.header[:]
	return nil
}

func (f *frameReader) body(h yamuxFrame) error {
	if in := f.windows.inbox(h.stream()); in != nil {
		return in.fill(f.r, int(h.length()), f.more)
	}
	return discardN(f.r, int64(h.length())) // the stream was closed here
}
