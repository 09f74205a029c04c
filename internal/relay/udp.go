package relay

import (
	"net"
	"time"
)

const maxDatagram = 64 << 10

// udpFlow is a client's way to the target. Its fields but the first three are guarded by its relay's mu.
type udpFlow struct {
	from   net.Addr
	out    net.PacketConn // the source port
	target net.Addr
	last   time.Time
	dead   bool
}

// readUDP takes the clients' datagrams.
func (r *Relay) readUDP() {
	up, _ := r.ways()
	buf := make([]byte, maxDatagram)
	for up.unstalled() {
		n, from, err := r.udp.ReadFrom(buf)
		if err != nil {
			return
		}
		if !up.unstalled() {
			return
		}
		r.sendUp(up, append([]byte(nil), buf[:n]...), from)
	}
}

func (r *Relay) sendUp(up way, b []byte, from net.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return
	}
	now := time.Now()
	f := r.udpFlows[from.String()]
	if f != nil && !f.dead && r.idle(&f.last, now) {
		f = nil
	}
	if f == nil {
		if f = r.newUDPFlow(from, now); f == nil {
			return
		}
	}
	if f.dead || r.set.DropUDP {
		up.lane.stats.Lost++
		return
	}
	if due, ok := up.lane.datagram(*up.path, now, len(b)); ok {
		r.upUDP.add(due, func() {
			_, _ = f.out.WriteTo(b, f.target)
			r.mu.Lock()
			up.arrived(len(b))
			r.mu.Unlock()
		})
	}
}

// newUDPFlow takes a source port into use. mu is held.
func (r *Relay) newUDPFlow(from net.Addr, now time.Time) *udpFlow {
	target, err := net.ResolveUDPAddr("udp", r.target)
	if err != nil {
		return nil
	}
	var out net.PacketConn
	if r.mem != nil {
		out = r.mem.ListenPacket()
	} else if out, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
		return nil
	}
	f := &udpFlow{from: from, out: out, target: target, last: now}
	r.udpFlows[from.String()] = f
	r.mappings = append(r.mappings, out)
	r.stats.UDPFlows++
	r.wg.Go(func() { r.readMapping(f) })
	return f
}

// readMapping takes the target's datagrams for one client. A port that was
// forgotten stays open, so that nobody else gets it, and leads nowhere.
func (r *Relay) readMapping(f *udpFlow) {
	_, down := r.ways()
	buf := make([]byte, maxDatagram)
	for down.unstalled() {
		n, _, err := f.out.ReadFrom(buf)
		if err != nil {
			return
		}
		if !down.unstalled() {
			return
		}
		r.sendDown(down, f, append([]byte(nil), buf[:n]...))
	}
}

func (r *Relay) sendDown(down way, f *udpFlow, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	current := r.udpFlows[f.from.String()] == f
	if current && !f.dead && r.idle(&f.last, now) {
		delete(r.udpFlows, f.from.String())
		current = false
	}
	if !current || f.dead || r.set.DropUDP {
		down.lane.stats.Lost++
		return
	}
	if due, ok := down.lane.datagram(*down.path, now, len(b)); ok {
		r.dnUDP.add(due, func() {
			_, _ = r.udp.WriteTo(b, f.from)
			r.mu.Lock()
			down.arrived(len(b))
			r.mu.Unlock()
		})
	}
}

// forgetUDP drops the mappings. mu is held.
func (r *Relay) forgetUDP() { clear(r.udpFlows) }
