package tunnel

import (
	"io"
	"testing"
)

// TestFINWaits: a FIN for which nobody waits goes with the next frame, and comes soon without one, and not behind all that much; that of the side that ends
// first is written at once, as a reader may wait for it.
func TestFINWaits(t *testing.T) {
	setJoining(t, joinNever) // a frame that is joined may be about to be written when its writer returns
	p := newPair(t, TransportTCP, false, Config{})
	conn := func(st *Stream) *frameConn { return st.raw.(*yamuxStream).m.conn }
	ahead := func(st *Stream) int {
		c := conn(st)
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.waiting()
	}
	talk := func(from, to *Stream) {
		t.Helper()
		if _, err := from.Write([]byte("!")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	atEnd := func(st *Stream) {
		t.Helper()
		if n, err := st.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("read %d bytes, %v; want an end of file", n, err)
		}
	}
	stop := func(st *Stream) { // the timer, and have it found running
		c := conn(st)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.fins != nil {
			c.fins.Stop()
		}
		c.running = true
	}
	other1, other2 := p.connect(t)
	defer other1.Close()
	defer other2.Close()
	talk(other1, other2)
	talk(other2, other1)

	for _, next := range []bool{true, false} {
		a, b := p.connect(t)
		talk(a, b)
		talk(b, a)
		if err := a.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n := ahead(a); n > 0 {
			t.Errorf("%d bytes wait: the first FIN", n)
		}
		atEnd(b)
		if next {
			stop(b)
		}
		if err := b.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if next { // nothing but that frame brings it
			if n := ahead(b); n != yamuxHeader {
				t.Errorf("%d bytes wait, want the FIN's %d", n, yamuxHeader)
			}
			talk(other2, other1)
			c := conn(b)
			c.mu.Lock()
			c.running = false
			c.mu.Unlock()
		}
		atEnd(a)
		a.Close()
		b.Close()
	}

	c := conn(other1)
	c.mu.Lock()
	for c.waiting() <= maxAhead {
		c.putAhead(0, 1, 0) // grants of nothing
	}
	c.mu.Unlock()
	if c.endLater(99) {
		t.Error("a FIN waits behind more than maxAhead")
	}
	c.flush()
}
