package rounds

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestUntil(t *testing.T) {
	at := time.Date(2026, 11, 27, 5, 0, 7, 0, time.UTC)
	for _, c := range []struct {
		now         time.Time
		every, want time.Duration
	}{
		{at, 10 * time.Second, 3 * time.Second},
		{at, 30 * time.Second, 23 * time.Second},
		{at.Add(3 * time.Second), 10 * time.Second, 10 * time.Second},
		{at.Add(2900 * time.Millisecond), 10 * time.Second, 10*time.Second + 100*time.Millisecond}, // a timer that came early
		{at.In(time.FixedZone("", 5400)), time.Minute, 53 * time.Second},
		{time.Unix(7, 0), 10 * time.Second, 3 * time.Second}, // a box that boots in 1970
	} {
		if got := until(c.now, c.every); got != c.want {
			t.Errorf("at %s every %s: %s, want %s", c.now, c.every, got, c.want)
		}
	}
}

// TestTogether: rounds that began at different times come at the same.
func TestTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		woke := make(chan time.Time, 2)
		for range 2 {
			time.Sleep(time.Second)
			go func() {
				time.Sleep(Until(10 * time.Second))
				woke <- time.Now()
			}()
		}
		if a, b := <-woke, <-woke; !a.Equal(b) {
			t.Errorf("woke at %s and at %s", a, b)
		}
	})
}
