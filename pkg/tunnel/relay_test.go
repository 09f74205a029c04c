package tunnel

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// relay stands between an agent and a broker, for UDP and TCP, and can turn
// into a black hole or lead to another broker.
type relay struct {
	addr string
	udp  net.PacketConn
	hole atomic.Bool // nothing passes, nothing is said

	mu     sync.Mutex // guards the following
	target string
	conns  []net.Conn
	wg     sync.WaitGroup
	closed chan struct{}
}

func startRelay(t testing.TB, target string) *relay {
	t.Helper()
	ln, pc := listenBoth(t)
	r := &relay{addr: ln.Addr().String(), udp: pc, target: target, closed: make(chan struct{})}
	r.wg.Go(func() { r.serveTCP(ln) })
	r.wg.Go(r.serveUDP)
	t.Cleanup(func() {
		close(r.closed)
		_ = ln.Close()
		_ = pc.Close()
		r.mu.Lock()
		for _, c := range r.conns {
			_ = c.Close()
		}
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

// leadTo makes what comes from now on go to another broker. UDP only.
func (r *relay) leadTo(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
}

func (r *relay) dial(network string) (net.Conn, string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, err := net.Dial(network, r.target)
	if err == nil {
		r.conns = append(r.conns, c)
	}
	return c, r.target, err
}

func (r *relay) serveTCP(ln net.Listener) {
	for {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		out, _, err := r.dial("tcp")
		if err != nil {
			_ = in.Close()
			continue
		}
		r.mu.Lock()
		r.conns = append(r.conns, in)
		r.mu.Unlock()
		r.wg.Go(func() { r.pump(out, in) })
		r.wg.Go(func() { r.pump(in, out) })
	}
}

// pump copies until either end closes; in a black hole even that is not told.
func (r *relay) pump(dst, src net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if r.hole.Load() {
			<-r.closed
			return
		}
		if n > 0 {
			_, _ = dst.Write(buf[:n])
		}
		if err != nil {
			_ = dst.(*net.TCPConn).CloseWrite()
			return
		}
	}
}

func (r *relay) serveUDP() {
	upstream := make(map[string]net.Conn) // by client and target
	buf := make([]byte, 64<<10)
	for {
		n, from, err := r.udp.ReadFrom(buf)
		if err != nil {
			return
		}
		r.mu.Lock()
		key := from.String() + " " + r.target
		r.mu.Unlock()
		out := upstream[key]
		if out == nil {
			var target string
			if out, target, err = r.dial("udp"); err != nil {
				continue
			}
			upstream[from.String()+" "+target] = out
			r.wg.Go(func() { r.answerUDP(out, from) })
		}
		if !r.hole.Load() {
			_, _ = out.Write(buf[:n])
		}
	}
}

func (r *relay) answerUDP(out net.Conn, to net.Addr) {
	buf := make([]byte, 64<<10)
	for {
		n, err := out.Read(buf)
		select {
		case <-r.closed:
			return
		default:
		}
		if err != nil {
			time.Sleep(time.Millisecond) // nobody listens there: it may come back
			continue
		}
		if !r.hole.Load() {
			_, _ = r.udp.WriteTo(buf[:n], to)
		}
	}
}
