package relay

import (
	"io"
	"net"
	"time"
)

const (
	tcpChunk = 16 << 10
	// tcpBuffer is how many bytes a connection has on their way at most: more than any window that a test looks at.
	tcpBuffer = 64 << 20
)

// tcpFlow is one connection, as two. Its fields but the first two are guarded by its relay's mu.
type tcpFlow struct {
	client, server *net.TCPConn
	last           time.Time
	dead           bool // nothing passes any more
	ended          int  // directions that are over
}

func (r *Relay) acceptTCP() {
	for {
		c, err := r.ln.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		target := r.target
		r.mu.Unlock()
		out, err := net.Dial("tcp", target)
		if err != nil {
			reset(c.(*net.TCPConn))
			continue
		}
		f := &tcpFlow{client: c.(*net.TCPConn), server: out.(*net.TCPConn), last: time.Now()}
		r.mu.Lock()
		if r.over {
			r.mu.Unlock()
			_ = c.Close()
			_ = out.Close()
			return
		}
		r.tcpFlows[f] = struct{}{}
		r.stats.TCPFlows++
		up, down := r.ways()
		r.wg.Go(func() { r.pump(f, up, f.server, f.client) })
		r.wg.Go(func() { r.pump(f, down, f.client, f.server) })
		r.mu.Unlock()
	}
}

// pump carries one direction of a connection to its end.
func (r *Relay) pump(f *tcpFlow, w way, dst, src *net.TCPConn) {
	s := newSchedule()
	over := make(chan struct{})
	r.wg.Go(func() { s.run(over) })
	p := &pipe{r: r, f: f, w: w, dst: dst, src: src, schedule: s}
	p.carry()
	close(over)
}

// pipe is one direction of a connection.
type pipe struct {
	r        *Relay
	f        *tcpFlow
	w        way
	dst, src *net.TCPConn
	schedule *schedule
	last     time.Time // when what was read last arrives
	held     int64     // bytes on their way; guarded by r.mu
}

func (p *pipe) carry() {
	buf := make([]byte, tcpChunk)
	for p.ready() {
		n, err := p.src.Read(buf)
		if !p.ready() {
			return
		}
		if n > 0 {
			p.send(append([]byte(nil), buf[:n]...))
		}
		if err != nil {
			p.end(err)
			return
		}
	}
}

// ready waits until the way is read.
func (p *pipe) ready() bool {
	return p.r.await(func() bool { return p.w.path.Stall || p.held >= tcpBuffer })
}

// lost says whether what was just read comes to nothing. mu is held.
func (p *pipe) lost(now time.Time) bool {
	if !p.f.dead && p.r.idle(&p.f.last, now) {
		p.f.dead = true
	}
	return p.f.dead || p.w.path.Hole
}

func (p *pipe) send(b []byte) {
	r := p.r
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if p.lost(now) {
		p.w.lane.stats.Lost++
		return
	}
	due := p.w.lane.bytes(*p.w.path, now, len(b), r.set.Up.Delay+r.set.Down.Delay)
	if due.Before(p.last) {
		due = p.last
	}
	p.last = due
	p.held += int64(len(b))
	p.schedule.add(due, func() {
		r.mu.Lock()
		dead := p.f.dead
		r.mu.Unlock()
		if !dead {
			_, _ = p.dst.Write(b)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		p.held -= int64(len(b))
		p.w.arrived(len(b))
		r.announce()
	})
}

// end hands on how the direction ended, and waits until that has arrived.
func (p *pipe) end(err error) {
	r := p.r
	r.mu.Lock()
	if p.lost(time.Now()) {
		r.mu.Unlock()
		<-r.closed
		return
	}
	due := time.Now().Add(p.w.path.Delay)
	r.mu.Unlock()
	if due.Before(p.last) {
		due = p.last
	}
	told := make(chan struct{})
	p.schedule.add(due, func() {
		defer close(told)
		if err == io.EOF {
			_ = p.dst.CloseWrite()
		} else {
			reset(p.dst)
		}
	})
	select {
	case <-told:
	case <-r.closed:
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.f.ended++; p.f.ended == 2 {
		_ = p.f.client.Close()
		_ = p.f.server.Close()
		delete(r.tcpFlows, p.f)
	}
}

// reset closes a connection with a RST.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
