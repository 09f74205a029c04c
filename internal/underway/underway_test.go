package underway

import (
	"context"
	"testing"
	"testing/synctest"
)

// TestWaitIdle: who waits is let go by the last that ends, or by its own context, and none waits for what is over.
func TestWaitIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Count
		c.WaitIdle(t.Context()) // or the test is deadlocked
		one, two := c.Begin(), c.Begin()
		waited := make(chan struct{}, 2)
		for range 2 {
			go func() { c.WaitIdle(t.Context()); waited <- struct{}{} }()
		}
		one()
		synctest.Wait()
		if len(waited) != 0 || c.N() != 1 {
			t.Errorf("%d were let go while %d go on", len(waited), c.N())
		}
		given, up := context.WithCancel(t.Context())
		up()
		c.WaitIdle(given) // or the test is deadlocked
		two()
		<-waited
		<-waited
		three := c.Begin() // anew
		go func() { c.WaitIdle(t.Context()); waited <- struct{}{} }()
		synctest.Wait()
		if len(waited) != 0 {
			t.Error("let go by what was over before")
		}
		three()
		<-waited
	})
}
