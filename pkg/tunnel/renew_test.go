package tunnel

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// TestClientRenews: a session is replaced when that is asked for, without a break, and tried again while nobody is there; a Renew
// during an attempt is good for another one. Mechanism: the renew channel in stay. Seen failing with a case that plans nothing (no
// second session comes up), and with one that is taken during an attempt, too (no third does).
func TestClientRenews(t *testing.T) {
	w := &weather{quic: true}
	inWeather(t, w, ClientConfig{}, func(t *testing.T, c *Client, ups chan *Session, downs chan error) {
		old := <-ups
		brk, _ := w.last()
		st, err := brk.Open(t.Context(), wire.KindDial, "node:1")
		if err != nil {
			t.Fatal(err)
		}
		w.set(func() { w.away = true })
		c.Renew()
		time.Sleep(10 * time.Second) // of fake time: some attempts come to nothing
		w.set(func() {
			if len(w.dials) < 3 {
				t.Errorf("%d dials in all", len(w.dials))
			}
			w.away, w.gate = false, make(chan struct{})
		})
		time.Sleep(defaultBackoffMax) // the next attempt is under way
		c.Renew()
		w.set(func() { close(w.gate); w.gate = nil })
		second, third := <-ups, <-ups
		if second == old || third == second || len(downs) != 0 {
			t.Error("the sessions were not handed over")
		}
		talk(t, st, "still here")
		_ = st.Close()
		<-old.Done()
		wantClosed(t, old.Err(), wire.OK, false)
		<-second.Done()

		synctest.Wait()
		time.Sleep(time.Hour)
		if n := len(ups); n != 0 {
			t.Errorf("%d more sessions that nobody asked for", n)
		}
	})
}

// TestRenewWhileDownIsForgotten: what is dialled after a Renew is new, and needs no other one. Seen failing without unrenew.
func TestRenewWhileDownIsForgotten(t *testing.T) {
	w := &weather{quic: true, away: true}
	inWeather(t, w, ClientConfig{}, func(t *testing.T, c *Client, ups chan *Session, downs chan error) {
		<-downs
		c.Renew()
		w.set(func() { w.away = false })
		<-ups
		time.Sleep(time.Hour)
		if n := len(ups); n != 0 {
			t.Errorf("%d more sessions that nobody asked for", n)
		}
	})
}
