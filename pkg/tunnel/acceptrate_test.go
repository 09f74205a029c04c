package tunnel

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mooring-edge/mooring/internal/strangers"
)

// TestFault17AcceptRate: the agents of a fleet lose their broker in one moment, and come back to a door with the
// default limits by way of the client's own backoff, each with QUIC and then TCP. No second sees more of them than
// the rate allows, and all are in after a bounded number of attempts; so they are behind one address.
//
// Fails without the door (Limits{}): the first second takes all. With a backoff that does not grow: too many attempts. With a
// rate that nothing is added to (a burst for good): not all come in.
func TestFault17AcceptRate(t *testing.T) {
	const (
		agents = 10_000
		rate   = 1000
		burst  = 4 * rate
		// A handshake on a bad link.
		handshake = 800 * time.Millisecond
	)
	limits := strangers.Limits{Max: 4096, MaxPerSource: 512, Rate: rate, RatePerSource: rate / 2}
	for name, tc := range map[string]struct {
		sites  int
		within time.Duration
	}{
		"sites of a hundred nodes":    {100, 90 * time.Second},
		"all behind a single address": {1, 3 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				door := strangers.NewDoor(strangers.Config{Limits: limits})
				began := time.Now()
				var (
					mu     sync.Mutex // guards the following
					taken  = map[int]int{}
					tries  = make([]int, agents)
					inside sync.WaitGroup
					last   time.Duration
				)
				enter := func(ctx context.Context, from net.Addr) error {
					leave, err := door.Enter(from)
					if err != nil {
						return err
					}
					mu.Lock()
					taken[int(time.Since(began)/time.Second)]++
					mu.Unlock()
					time.Sleep(handshake/2 + rand.N(handshake/2))
					leave()
					mu.Lock()
					last = time.Since(began)
					mu.Unlock()
					inside.Done()
					<-ctx.Done() // a session that lasts
					return ctx.Err()
				}
				ctx, cancel := context.WithCancel(t.Context())
				var clients sync.WaitGroup
				inside.Add(agents)
				for i := range agents {
					site := i % tc.sites
					from := &net.TCPAddr{IP: net.IPv4(198, 51, byte(100+site/256), byte(site)), Port: 1024 + i}
					c := NewClient(ClientConfig{
						Dialer: func() *Dialer { return &Dialer{} },
						dial: func(ctx context.Context, _ *Dialer) (*Session, error) {
							mu.Lock()
							tries[i]++
							mu.Unlock()
							err := enter(ctx, from) // QUIC; then TCP
							if ctx.Err() == nil {
								err = enter(ctx, from)
							}
							return nil, err
						},
						TickInterval: time.Hour,
					})
					clients.Go(func() { _ = c.Run(ctx) })
				}
				done := make(chan struct{})
				go func() { inside.Wait(); close(done) }()
				select {
				case <-done:
				case <-time.After(10 * time.Minute):
					t.Errorf("not all are in after %s", time.Since(began))
				}
				cancel()
				clients.Wait()

				most := 0
				for _, n := range tries {
					most = max(most, n)
				}
				t.Logf("all in after %s, by at most %d attempts; %d in the first second", last, most, taken[0])
				if last > tc.within || most > 12 {
					t.Errorf("the last was in after %s and somebody's %d attempts; want %s and 12", last, most, tc.within)
				}
				sum := 0
				for second := range int(last/time.Second) + 1 {
					sum += taken[second]
					if allowed := burst + rate*(second+1); sum > allowed {
						t.Errorf("%d were taken up in the first %d seconds, %d are allowed", sum, second+1, allowed)
					}
				}
			})
		})
	}
}
