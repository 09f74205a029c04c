package tunnel

import (
	"errors"
	"sync"
	"time"
)

const (
	// baseWindow is what each yamux stream may hold from its first moment: what yamux itself begins with.
	baseWindow = 256 << 10
	// keepUpTime is what a window is worth: it grows to what its reader takes in that time, which on every path of a
	// shorter round trip is more than what is on its way. The heartbeat's round trip is not asked: it may be 25 s old.
	keepUpTime = 2 * time.Second
	// slackTime is in what time a reader takes a window's worth at the most, or it does not need so large a one.
	slackTime = 16 * time.Second
)

// errYamuxWindow is what a session ends by whose other side sends what it was not granted.
var errYamuxWindow = errors.New("the other side sends more on a stream than its window allows")

// errYamuxTwice is what a session ends by whose other side opens a stream by the number of another.
var errYamuxTwice = errors.New("the other side opens a stream that is open")

// errYamuxNumber is what a session ends by whose other side opens a stream by a number that is this side's to give.
var errYamuxNumber = errors.New("the other side opens a stream by a number that is not its own")

// yamuxWindows decides how many bytes the other side may send on each stream of a session. A stream begins with
// baseWindow, and is granted more as its reader takes what came. Its window doubles while the reader keeps up, up to max
// and as far as the session's budget goes, of which it gets no more than it leaves: so the streams together hold the
// budget and baseWindow for each at the most, and there is something for the next. What a window exceeds baseWindow
// by goes back when the reader has become slow, or the stream is gone.
//
// It also counts what the other side has granted, as yamux's own writing is not used (see yamuxStream.Write).
//
// It sends nothing and reads no clock: frameConn shows it the frames, yamuxStream what was read and what is to be written.
type yamuxWindows struct {
	max int // of a stream

	mu    sync.Mutex // guards the following, and what is in each yamuxWindow
	spare int        // what is left of the budget
	all   map[uint32]*yamuxWindow
}

// yamuxWindow is a stream's.
type yamuxWindow struct {
	target   int // what the other side may have sent, or send, that was not read yet
	held     int // what of that it was granted; no more than target, but after a target was lowered
	buffered int // what of that has arrived
	size     int // the most of baseWindow, target and held: what counts against the budget
	fixed    bool
	over     bool // the other side will send nothing any more
	gone     bool // the stream was closed: the window counts no more

	in *inbox // what is buffered

	taken int       // read since since
	since time.Time // zero: nothing was read yet

	credit int           // what the other side takes, by its grants, and was not written yet
	more   chan struct{} // closed once there is credit again, or never will be; nil: nobody waits
}

// mostCredit is as much as the other side is believed to have granted: what it says beyond that would only overflow.
const mostCredit = 1 << 30

func newYamuxWindows(maximum, budget int) *yamuxWindows {
	return &yamuxWindows{max: maximum, spare: budget, all: make(map[uint32]*yamuxWindow)}
}

// opened makes the window of a new stream.
func (s *yamuxWindows) opened(id uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[id] != nil {
		return errYamuxTwice
	}
	s.all[id] = &yamuxWindow{target: baseWindow, held: baseWindow, size: baseWindow, credit: baseWindow, in: newInbox()}
	return nil
}

// granted takes note that the other side takes n bytes more of a stream.
func (s *yamuxWindows) granted(id uint32, n uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.all[id]
	if w == nil || n == 0 {
		return
	}
	w.credit = int(min(int64(w.credit)+int64(n), mostCredit))
	w.wakeWriter()
}

// wakeWriter has whoever waits for credit look again.
func (w *yamuxWindow) wakeWriter() {
	if w.more != nil {
		close(w.more)
		w.more = nil
	}
}

// take uses up to n bytes of what the other side takes of a stream. If that is nothing, more is closed once there is something, or
// will not be any more.
func (s *yamuxWindows) take(w *yamuxWindow, n int) (taken int, more <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.credit > 0 {
		taken = min(n, w.credit)
		w.credit -= taken
		return taken, nil
	}
	if w.more == nil {
		w.more = make(chan struct{})
	}
	return 0, w.more
}

// of returns the window of a stream that was opened, or one that does not count if it was closed since.
func (s *yamuxWindows) of(id uint32) *yamuxWindow {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.all[id]; w != nil {
		return w
	}
	in := newInbox()
	in.end(false)
	return &yamuxWindow{gone: true, in: in}
}

// takeAll uses n bytes of what the other side takes of a stream, or none and returns false where that is less.
func (s *yamuxWindows) takeAll(w *yamuxWindow, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.credit < n {
		return false
	}
	w.credit -= n
	return true
}

// fix keeps a window at what it is.
func (s *yamuxWindows) fix(w *yamuxWindow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.fixed = true
}

// arrived takes note of n bytes of a stream. Those of a stream that is not known are dropped.
func (s *yamuxWindows) arrived(id uint32, n uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.all[id]
	if w == nil {
		return nil
	}
	if uint64(n) > uint64(w.held-w.buffered) {
		return errYamuxWindow
	}
	w.buffered += int(n)
	return nil
}

// inbox is where a stream's bytes go; nil if it is not known any more.
func (s *yamuxWindows) inbox(id uint32) *inbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.all[id]; w != nil {
		return w.in
	}
	return nil
}

// ended says that nothing more comes. What came is still to be read. refused: the other side did not take the stream.
func (s *yamuxWindows) ended(id uint32, refused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.all[id]; w != nil {
		w.over, w.target, w.held = true, baseWindow, w.buffered
		s.settle(w)
		w.in.end(refused)
		if refused {
			w.wakeWriter()
		}
	}
}

// closed gives back what a stream had.
func (s *yamuxWindows) closed(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.all[id]; w != nil {
		s.spare += w.size - baseWindow
		w.gone = true
		w.in.drop()
		delete(s.all, id)
	}
}

// read takes note of n bytes that were read. It returns what the other side is to be granted, mostly nothing.
func (s *yamuxWindows) read(w *yamuxWindow, n int, now time.Time) (grant uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.held -= n
	w.buffered -= n
	if w.gone {
		return 0
	}
	if !w.over {
		s.tune(w, n, now)
		if more := w.target - w.held; more >= w.target/4 { // not each time: a grant is a packet
			w.held += more
			grant = uint32(more)
		}
	}
	s.settle(w)
	return grant
}

// settle takes from the budget what a window has come to need, or gives back what it needs no more. mu is held.
func (s *yamuxWindows) settle(w *yamuxWindow) {
	size := max(baseWindow, w.target, w.held)
	s.spare += w.size - size
	w.size = size
}

// tune fits the target to how fast the reader is, each time half of it was read. mu is held.
func (s *yamuxWindows) tune(w *yamuxWindow, n int, now time.Time) {
	if w.since.IsZero() {
		w.since = now
	}
	w.taken += n
	if w.taken < w.target/2 {
		return
	}
	took := now.Sub(w.since)
	w.taken, w.since = 0, now
	switch {
	case w.fixed:
	case took < keepUpTime/2:
		left := s.spare - (w.size - baseWindow) // so what it has comes to no more than what it leaves
		w.target += max(min(w.target, s.max-w.target, left/2), 0)
	case took > slackTime/2:
		w.target = max(w.target/2, baseWindow)
	}
}
