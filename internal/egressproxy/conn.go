package egressproxy

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	konnectivity "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/proto/client"

	"github.com/mooring-edge/mooring/internal/bidi"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

const (
	// maxQueue is how much a connection may hold that its node has not taken, in bytes, until its client is stopped. What that may have
	// sent by then comes on top: a packet, and what gRPC's flow control allows.
	maxQueue = 1 << 20
	// message is how long a packet is, in bytes, that is passed on by who reads it, if that waits for nothing.
	message = 4 << 10
	// stallLimit is how long a full queue may hold up others on the same gRPC stream, while its node takes nothing.
	stallLimit = 10 * time.Second
	// tailTime is how long a node that takes nothing more may pause in what it still has to say.
	tailTime = 10 * time.Second
	// partTime is how long a node whose client has closed the connection has to end its own side, and partBytes how much it may say meanwhile. Nobody reads it; but
	// to have it stopped takes more of all on the way than to wait for it, and most have ended at once.
	partTime  = time.Second
	partBytes = 64 << 10
)

// conn is one connection of a call.
//
// Konnectivity knows no half-close. A node that ends its bytes has the connection closed (CLOSE_RSP), and what the client has
// sent by then and the node not taken is lost. A client's CLOSE_REQ has all of it written before the node reads an
// end; a node that does not end its own side then is told to write no more. All other ends are abnormal: the node's side is reset, and the client is told by CLOSE_RSP.error as far as the stream is there.
type conn struct {
	call       *call
	id, random int64
	node       remote
	log        *slog.Logger
	started    time.Time

	head  [dataRoom]byte // of the one who reads the node
	parts bool           // the node was told of the client's end; of the one who writes

	mute bool // CLOSE_RSP was sent, nothing follows it; guarded by call.sendMu

	sent, received atomic.Int64
	deaf           atomic.Bool // the node takes nothing more

	mu       sync.Mutex // guards the following
	queue    []bidi.Held
	queued   int           // what it takes, in bytes
	writing  bool          // something that was in it is being written
	full     *time.Timer   // runs while the client is stopped; nil: it is not
	moved    time.Time     // when the node took something last, or the client was stopped
	finished bool          // CLOSE_REQ came: the end follows the queue
	over     bool          // nothing is written any more
	why      string        // it was cut, if it was
	filled   chan struct{} // holds one: there is something to write, or an end
}

func newConn(c *call, id, random int64, node remote, log *slog.Logger) *conn {
	return &conn{
		call: c, id: id, random: random, node: node, log: log.With("connection", id), started: time.Now(),
		filled: make(chan struct{}, 1),
	}
}

// run tells the client that it is connected and carries bytes until both ways have ended.
func (k *conn) run() {
	var writing sync.WaitGroup
	err := k.call.send(dialResponse(&konnectivity.DialResponse{Random: k.random, ConnectID: k.id}))
	if err != nil {
		k.abort(wire.Canceled, err.Error())
	} else {
		writing.Go(k.write)
		err = k.read()
	}
	writing.Wait()
	k.call.forget(k)
	if k.parts {
		k.part()
	}
	_ = k.node.Close() // what was reset stays so
	k.log.Debug("connection ended", "toNode", k.sent.Load(), "toAPIServer", k.received.Load(), "after", time.Since(k.started), "err", err)
}

// read carries what the node says to the client, and says how it ended.
func (k *conn) read() error {
	err := k.pump()
	switch {
	case k.isFinished() && (errors.Is(err, io.EOF) || errors.Is(err, errMute) || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded)):
		return nil // what is left is to be written
	case errors.Is(err, io.EOF) && k.deaf.Load():
		err = errDeaf
	case errors.Is(err, io.EOF):
		k.halt()
		_ = k.node.Close() // ends a write that is under way, too
		_ = k.call.sayClosed(k, "")
		return nil
	}
	k.abort(wire.Canceled, err.Error())
	_ = k.call.sayClosed(k, "the connection to the node was cut: "+k.cause())
	return err
}

var errDeaf = errors.New("the node did not take all that was sent")

// pump ends with io.EOF, if the node ended its bytes in the ordinary way.
func (k *conn) pump() error {
	var short [dataRoom]byte
	k.node.Deliver(func(p []byte) int {
		if len(p) > message || k.deaf.Load() || !k.call.trySendData(k, &short, p) { // a tail's pauses are counted by its reads
			return 0
		}
		k.received.Add(int64(len(p)))
		return len(p)
	})
	defer k.node.Deliver(nil)
	for {
		if k.deaf.Load() {
			_ = k.node.SetReadDeadline(time.Now().Add(tailTime))
		}
		if err := k.node.WaitRead(); err != nil {
			return err
		}
		if err := k.burst(); err != nil {
			return err
		}
	}
}

// chunks has what a connection's bytes are read into. One that is idle holds none.
var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// burst sends what there is to read.
func (k *conn) burst() error {
	buf := chunks.Get().(*[chunk]byte)
	defer chunks.Put(buf)
	for {
		n, err := k.node.Read(buf[:])
		if n > 0 { // an empty packet would be an end of file to the client
			k.received.Add(int64(n))
			if err := k.call.sendData(k, &k.head, buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		if n < chunk/4 {
			return nil
		}
	}
}

// write writes the queue to the node, and its end.
func (k *conn) write() {
	for {
		b, end, over := k.next()
		switch {
		case over:
			return
		case end:
			if k.parts = k.node.CloseWrite() == nil; !k.parts { // behind all that was written
				_ = k.node.Close()
			}
			_ = k.node.SetReadDeadline(time.Now().Add(partTime))
			return
		}
		n, err := k.node.Write(b.Bytes)
		b.Free()
		k.sent.Add(int64(n))
		if err == nil {
			continue
		}
		if k.isFinished() { // by a node that takes nothing, or nothing more: it must not take this for the end
			k.abort(wire.Canceled, err.Error())
			return
		}
		// The node may have more to say: an early answer, for one.
		k.deaf.Store(true)
		_ = k.node.SetReadDeadline(time.Now().Add(tailTime))
		k.halt()
		return
	}
}

// part waits for the node's own end, until the deadline that write has set.
func (k *conn) part() {
	for left := partBytes; left > 0 && k.node.WaitRead() == nil; {
		buf := chunks.Get().(*[chunk]byte)
		n, err := k.node.Read(buf[:])
		chunks.Put(buf)
		if err != nil {
			return
		}
		left -= n
	}
}

// next waits for something to write.
func (k *conn) next() (b bidi.Held, end, over bool) {
	for {
		k.mu.Lock()
		k.writing = false
		switch {
		case k.over:
			over = true
		case len(k.queue) > 0:
			b = k.queue[0]
			k.queue = k.queue[1:]
			k.queued -= b.Weight()
			k.writing = true
			k.drained()
		case k.finished:
			end = true
		default:
			k.mu.Unlock()
			<-k.filled
			continue
		}
		k.mu.Unlock()
		return b, end, over
	}
}

// drained lets the client go on, if the queue is short enough. mu is held.
func (k *conn) drained() {
	switch {
	case k.full == nil:
	case k.queued > maxQueue:
		k.moved = time.Now()
	default:
		k.full.Stop()
		k.full = nil
		k.call.client.Resume()
	}
}

// put takes what the client sent, a part of m. Short ones are written at once, if nothing waits. With a full queue the client is stopped: that is the
// back-pressure on one which has one connection on each stream. Where there are others on it, and the node takes nothing for stallLimit, the
// connection is cut for their sake.
func (k *conn) put(data []byte, m *bidi.Message) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(data) == 0 || k.over || k.finished {
		return
	}
	if len(k.queue) == 0 && !k.writing && len(data) <= message && k.node.TryWrite(data) {
		k.sent.Add(int64(len(data)))
		return
	}
	b := m.Keep(data)
	k.queue, k.queued = append(k.queue, b), k.queued+b.Weight()
	if k.queued > maxQueue && k.full == nil {
		k.call.client.Pause()
		k.moved = time.Now()
		k.full = time.AfterFunc(k.call.p.cfg.stallLimit, k.stalled)
	}
	signal(k.filled)
}

// stalled looks whether the node has taken nothing for stallLimit, while others wait.
func (k *conn) stalled() {
	alone := k.call.alone()
	k.mu.Lock()
	cut := false
	if k.full != nil {
		if alone {
			k.moved = time.Now()
		}
		left := k.call.p.cfg.stallLimit - time.Since(k.moved)
		if cut = left <= 0; !cut {
			k.full.Reset(left)
		}
	}
	k.mu.Unlock()
	if cut {
		k.log.Warn("connection cut: its node takes nothing, and others wait behind it on their common stream")
		k.abort(wire.Overloaded, "the node takes nothing, and others wait behind it on their common stream")
	}
}

// finish is the client's end: what it sent before is still written, within closeGrace, but nothing more is read. False: it came before.
func (k *conn) finish() bool {
	k.mu.Lock()
	finished, over := k.finished, k.over
	k.finished = true
	k.mu.Unlock()
	if finished {
		return false
	}
	if over { // nobody writes any more
		_ = k.node.Close()
		return true
	}
	_ = k.node.SetWriteDeadline(time.Now().Add(k.call.p.cfg.closeGrace))
	signal(k.filled)
	return true
}

func (k *conn) isFinished() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.finished
}

// halt has nothing more written. What is queued is lost.
func (k *conn) halt() {
	k.mu.Lock()
	k.over = true
	k.queue, k.queued = nil, 0
	k.drained()
	k.mu.Unlock()
	signal(k.filled)
}

// abort resets the node's side. The first reason counts: what follows is its consequence.
func (k *conn) abort(code wire.Code, why string) {
	k.mu.Lock()
	if k.why == "" {
		k.why = why
	}
	k.mu.Unlock()
	k.halt()
	_ = k.node.Reset(code)
}

func (k *conn) cause() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.why
}

// abandoned is the end of the stream: a connection that its client has closed goes on to its end.
func (k *conn) abandoned() {
	if !k.isFinished() {
		k.abort(wire.Canceled, "the stream of its client ended")
	}
}

// signal makes sure that c holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
