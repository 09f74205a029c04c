package wan

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// TrickleConfig is somebody's who opens many connections and says next to nothing on them.
type TrickleConfig struct {
	// Conns is how many connections, all at once.
	Conns int
	// Every is the time between two bytes on one.
	Every time.Duration
}

// dialsAtOnce is how many of them are being opened at a time.
const dialsAtOnce = 50

// Trickle starts such a one in a site. Its events are
//
//	open       all connections were tried; Values["open"] were accepted by the kernel at the other end
//	closed     the other side closed one, Took after it was open
func (w *World) Trickle(site host.Netns, c TrickleConfig) (*Proc, error) {
	return w.start(site, "trickle", c)
}

func trickle(ctx context.Context, r *role) error {
	var cfg TrickleConfig
	if err := r.configure(&cfg); err != nil {
		return err
	}
	go r.obey(func(string, string) (Event, error) { return Event{}, nil })
	var (
		all, dials sync.WaitGroup
		slots      = make(chan struct{}, dialsAtOnce)
		mu         sync.Mutex // guards the following
		open       int
	)
	for range cfg.Conns {
		slots <- struct{}{}
		dials.Go(func() {
			c, err := net.DialTimeout("tcp", Endpoint, 10*time.Second)
			<-slots
			if err != nil {
				r.log.Info("not even the kernel takes the connection", "err", err)
				return
			}
			mu.Lock()
			open++
			mu.Unlock()
			all.Go(func() { r.trickleOn(ctx, c, cfg.Every) })
		})
	}
	dials.Wait()
	r.say(Event{Name: "open", Values: map[string]float64{"open": float64(open)}})
	all.Wait()
	<-ctx.Done()
	return nil
}

// hello is how a ClientHello of 512 bytes begins.
var hello = []byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}

// trickleOn sends a byte now and then, until the other side closes.
func (r *role) trickleOn(ctx context.Context, c net.Conn, every time.Duration) {
	began := time.Now()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, c)
	}()
	defer c.Close()
	t := time.NewTicker(every)
	defer t.Stop()
	for i := 0; ; i++ {
		b := []byte{0}
		if i < len(hello) {
			b[0] = hello[i]
		}
		_, _ = c.Write(b) // an error is the reader's, too
		select {
		case <-t.C:
		case <-ended:
			r.say(Event{Name: "closed", Took: time.Since(began)})
			return
		case <-ctx.Done():
			return
		}
	}
}
