package relay

import (
	"fmt"
	"net"
	"sync"
	"time"
)

// Config is what a Relay needs.
type Config struct {
	// Target is the host:port that everything goes to.
	Target string
	// Seed makes the losses and jitters of a run repeatable, as far as the packets come in the same order.
	Seed uint64
	// Mem is the network to be in; nil: the loopback interface, UDP and TCP.
	Mem *Mem
	// Settings are those to begin with.
	Settings Settings
}

// Relay is a running relay. All methods may be called at any time from any goroutine.
type Relay struct {
	mem    *Mem
	ln     net.Listener // nil in a Mem
	udp    net.PacketConn
	upUDP  *schedule
	dnUDP  *schedule
	closed chan struct{}
	wg     sync.WaitGroup

	mu       sync.Mutex // guards the following
	target   string
	set      Settings
	changed  chan struct{} // closed with each change of set or of what is in flight
	up, down lane
	udpFlows map[string]*udpFlow // by the client's address
	mappings []net.PacketConn    // all that were ever made
	tcpFlows map[*tcpFlow]struct{}
	stats    Stats
	over     bool
}

// Start makes a relay and sets it going; Close ends it.
func Start(c Config) (*Relay, error) {
	r := &Relay{
		mem: c.Mem, target: c.Target, set: c.Settings,
		upUDP: newSchedule(), dnUDP: newSchedule(),
		closed: make(chan struct{}), changed: make(chan struct{}),
		up: newLane(c.Seed, 1), down: newLane(c.Seed, 2),
		udpFlows: make(map[string]*udpFlow), tcpFlows: make(map[*tcpFlow]struct{}),
	}
	if err := r.listen(); err != nil {
		return nil, fmt.Errorf("start a relay to %s: %w", c.Target, err)
	}
	if r.ln != nil {
		r.wg.Go(r.acceptTCP)
	}
	r.wg.Go(r.readUDP)
	r.wg.Go(func() { r.upUDP.run(r.closed) })
	r.wg.Go(func() { r.dnUDP.run(r.closed) })
	return r, nil
}

// listen finds a port that is free for both protocols.
func (r *Relay) listen() (err error) {
	if r.mem != nil {
		r.udp = r.mem.ListenPacket()
		return nil
	}
	for range 20 {
		if r.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		if r.udp, err = net.ListenPacket("udp", r.ln.Addr().String()); err == nil {
			return nil
		}
		_ = r.ln.Close()
	}
	return err
}

// Addr is where clients connect to, by UDP and TCP.
func (r *Relay) Addr() string { return r.udp.LocalAddr().String() }

// Set changes the settings, for what comes from now on; what is on its way arrives as it was to.
func (r *Relay) Set(change func(*Settings)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.set)
	r.announce()
}

// Stats returns what the relay has seen.
func (r *Relay) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Up, s.Down = r.up.stats, r.down.stats
	return s
}

// LeadTo has new connections, and all datagrams from now on, go to another target.
func (r *Relay) LeadTo(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
	r.forgetUDP()
}

// Forget is what a NAT or a load balancer does with flows that are idle for too
// long. Datagrams from the target are lost until one of the client's takes a
// new source port into use; on a TCP connection nothing passes any more, and nobody is told.
func (r *Relay) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetUDP()
	for f := range r.tcpFlows {
		f.dead = true
	}
}

// Rebind is what a NAT does that was restarted: datagrams come from a new
// source port, a client's TCP connection is reset, of which the target is not told.
func (r *Relay) Rebind() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forgetUDP()
	for f := range r.tcpFlows {
		f.dead = true
		reset(f.client)
	}
}

// Reset cuts all TCP connections, which both ends are told by a RST.
func (r *Relay) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for f := range r.tcpFlows {
		f.dead = true
		reset(f.client)
		reset(f.server)
	}
}

// Sever has nothing pass any more of what goes on now, UDP and TCP, and tells
// nobody. Who comes from a new address gets through.
func (r *Relay) Sever() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.udpFlows {
		f.dead = true
	}
	for f := range r.tcpFlows {
		f.dead = true
	}
}

// Close ends the relay, and returns when nothing of it runs any more. Open TCP connections are closed.
func (r *Relay) Close() {
	r.mu.Lock()
	if !r.over {
		r.over = true
		close(r.closed)
		r.announce()
		if r.ln != nil {
			_ = r.ln.Close()
		}
		_ = r.udp.Close()
		for _, c := range r.mappings {
			_ = c.Close()
		}
		for f := range r.tcpFlows {
			_ = f.client.Close()
			_ = f.server.Close()
		}
	}
	r.mu.Unlock()
	r.wg.Wait()
}

// announce wakes those who wait for a change. mu is held.
func (r *Relay) announce() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// way is one of the two, as its packets see it.
type way struct {
	r    *Relay
	lane *lane
	path *Path
}

func (r *Relay) ways() (up, down way) {
	return way{r, &r.up, &r.set.Up}, way{r, &r.down, &r.set.Down}
}

// await returns once cond, which is called with mu held, is false, or false itself if the relay was closed.
func (r *Relay) await(cond func() bool) bool {
	r.mu.Lock()
	for cond() && !r.over {
		changed := r.changed
		r.mu.Unlock()
		<-changed
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	return !r.over
}

// unstalled waits until the way is read again; false if the relay was closed.
func (w way) unstalled() bool { return w.r.await(func() bool { return w.path.Stall }) }

// arrived takes n bytes out of what is in flight. mu is held.
func (w way) arrived(n int) { w.lane.stats.InFlight -= int64(n) }

// idle says whether a flow was silent for too long, and takes note that it no longer is. mu is held.
func (r *Relay) idle(last *time.Time, now time.Time) bool {
	over := r.set.IdleTimeout > 0 && now.Sub(*last) >= r.set.IdleTimeout
	*last = now
	if over {
		r.stats.Forgotten++
	}
	return over
}
