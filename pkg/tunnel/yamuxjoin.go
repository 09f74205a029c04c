package tunnel

import (
	"runtime"

	"github.com/mooring-edge/mooring/internal/processors"
)

// joinSize is how long what a stream writes is at the most, in bytes, to be joined with others'. Longer, and copying it costs what there is to be saved.
const joinSize = 4 << 10

// joining says whether short frames are joined: where goroutines run one at a time, those that are about to run can't write before this one is done (docs/decisions/0034).
// It may change at any time.
var joining = processors.Single

// join has a short frame go in one record, and one write, with those of all who are about to run: the first lets these run, and then writes what
// they left. The others don't wait for that; nor does the first where somebody is writing, as that could be a long frame of another. It returns false, and has done
// nothing, where frames aren't joined.
func (c *frameConn) join(head, body []byte) (joined bool, err error) {
	if len(body) > joinSize || !joining() {
		return false, nil
	}
	c.mu.Lock()
	if !c.fits(len(body)) {
		c.mu.Unlock()
		return false, nil
	}
	first := c.joinLocked(head, body)
	c.mu.Unlock()
	if !first {
		return true, nil
	}
	runtime.Gosched()
	c.mu.Lock()
	went := !c.granting // with another's frame
	c.mu.Unlock()
	switch {
	case went:
	case c.wmu.TryLock():
		defer c.wmu.Unlock()
		return true, c.writeWaitingLocked()
	default:
		c.spawn(c.writeAhead)
	}
	return true, nil
}

// tryJoin is join for who reads a session: what it leaves is written once it has handled all that came. It returns false as well where the other side's window has
// no room for all of body.
func (c *frameConn) tryJoin(w *yamuxWindow, head, body []byte) bool {
	c.mu.Lock()
	if !c.fits(len(body)) || !c.windows.takeAll(w, len(body)) {
		c.mu.Unlock()
		return false
	}
	first := c.joinLocked(head, body)
	c.mu.Unlock()
	if first {
		c.spawn(c.writeAhead)
	}
	return true
}

// joinLocked joins a frame for which there is room: what is joined makes one record, so no more than that waits where the connection takes no more. first: nobody
// is about to write it. mu is held.
func (c *frameConn) joinLocked(head, body []byte) (first bool) {
	b := c.room()
	*b = append(append(*b, head...), body...)
	first = !c.granting
	c.granting = true
	return first
}
