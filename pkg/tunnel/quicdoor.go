package tunnel

import (
	"context"
	"net"
	"sync"
	"sync/atomic"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"
)

const (
	// retryRate is how many QUIC handshakes a second are taken up without proof that
	// the address they come from is the sender's, retryBurst how many at once.
	retryRate  = 100
	retryBurst = 200
	// maxUnproven is how many such may be under way: a forged Initial costs memory
	// (some 30 KB) until the handshake's timeout.
	maxUnproven = 256
)

// quicDoor is what a packet passes that would begin a QUIC connection. Both its methods
// are called by the one goroutine that takes up connections.
type quicDoor struct {
	enter    func(net.Addr) (func(), error)
	rate     *rate.Limiter
	unproven atomic.Int64
}

func newQUICDoor(enter func(net.Addr) (func(), error)) *quicDoor {
	return &quicDoor{enter: enter, rate: rate.NewLimiter(retryRate, retryBurst)}
}

// wantsProof says that a handshake is to be answered by a Retry, which costs neither memory nor a signature.
func (d *quicDoor) wantsProof(net.Addr) bool {
	return d.unproven.Load() >= maxUnproven || !d.rate.Allow()
}

type leaveKey struct{}

// take takes a connection up, or has it refused. ctx ends with the connection.
//
// An address that is not proven has no account: else who forges a site's address could use up that site's places.
func (d *quicDoor) take(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	source := info.RemoteAddr
	if !info.AddrVerified {
		source = nil
	}
	leave, err := d.enter(source)
	if err != nil {
		return nil, err
	}
	if source == nil {
		d.unproven.Add(1)
	}
	once := sync.OnceFunc(func() {
		if source == nil {
			d.unproven.Add(-1)
		}
		leave()
	})
	stop := context.AfterFunc(ctx, once)
	return context.WithValue(ctx, leaveKey{}, func() {
		stop()
		once()
	}), nil
}

// admittedOf is the place of a connection that was accepted; nil of one that was dialled.
func admittedOf(conn *quic.Conn) func() {
	leave, _ := conn.Context().Value(leaveKey{}).(func())
	return leave
}
