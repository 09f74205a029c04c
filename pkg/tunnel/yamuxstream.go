package tunnel

import (
	"errors"
	"io"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// aLongTimeAgo as a deadline kicks out whoever waits.
var aLongTimeAgo = time.Unix(1, 0)

// yamuxStream is a muxStream over a yamux stream.
//
// Yamux knows a FIN in each direction and nothing else. An abnormal end, or the
// wish that the other side stop writing, goes as a reset frame on the control
// stream, written before the FIN. The other side may read the FIN first all the
// same, as two goroutines read the two streams: so an end of file is believed
// only after barrier, when the control stream was read up to that point.
//
// A stream that is closed here is read until the other side's FIN, by a
// goroutine of its own unless that has come: until then its number is taken.
type yamuxStream struct {
	m      *yamuxMux
	id     uint32
	window *yamuxWindow
	in     *inbox // the window's
	now    bool   // what is written is on its way when Write returns, as on the control stream: a goodbye is followed by the end of the connection

	rmu   sync.Mutex // held through each read; guards acked
	acked bool       // the other side knows the stream

	wmu    sync.Mutex    // held through each write; guards finned
	finned bool          // the FIN was sent
	kick   chan struct{} // see kickWriter; holds one

	mu                sync.Mutex // guards the following
	readDL, writeDL   time.Time
	readErr, writeErr error // why there is no more reading or writing; nil: there is
	ended             bool  // close or reset was called
	aborted           func()
}

// Read implements io.Reader.
func (y *yamuxStream) Read(p []byte) (int, error) {
	y.rmu.Lock()
	defer y.rmu.Unlock()
	if err := y.awaitBytes(false); err != nil {
		return 0, err
	}
	n := y.in.take(p)
	y.took(n)
	return n, nil
}

// waitRead returns once there is something to read, be it an error.
func (y *yamuxStream) waitRead() error {
	y.rmu.Lock()
	defer y.rmu.Unlock()
	return y.awaitBytes(true)
}

// awaitBytes returns nil once there is something to read, or why there will not be. What can be delivered meanwhile is, if the reader rests: one
// that waits with a buffer does not. rmu is held.
func (y *yamuxStream) awaitBytes(rests bool) error {
	for {
		if err := y.check(&y.readErr, &y.readDL); err != nil {
			return err
		}
		if y.in.ready() {
			y.ack()
			return nil
		}
		over, refused := y.in.ended()
		switch {
		case refused:
			return errRefused()
		case over:
			return y.endOfFile()
		case y.m.over():
			return y.readOver()
		}
		y.in.rest(rests && y.acked)
		y.await(y.in.wake, nil, &y.readDL)
		y.in.rest(false)
	}
}

// deliver has what arrives given to f by who reads the session, where that can be done at once: see Stream.Deliver.
func (y *yamuxStream) deliver(f func(p []byte) int) {
	if f == nil {
		y.in.handTo(nil)
		return
	}
	y.in.handTo(func(p []byte) int {
		n := f(p)
		y.took(n)
		return n
	})
}

// errRefused is the end of a stream that the other side did not take: its backlog is full.
func errRefused() error { return &ResetError{Code: wire.Overloaded, Remote: true} }

// await returns once one of the channels has something or is closed, a deadline has passed, or the session has ended.
func (y *yamuxStream) await(one, other <-chan struct{}, deadline *time.Time) {
	y.mu.Lock()
	until := *deadline
	y.mu.Unlock()
	var passed <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		passed = t.C
	}
	select {
	case <-one:
	case <-other:
	case <-passed:
	case <-y.m.ys.CloseChan():
	}
}

// took has the other side granted what there is room for after n bytes were read.
func (y *yamuxStream) took(n int) {
	if n == 0 {
		return
	}
	if grant := y.m.conn.windows.read(y.window, n, time.Now()); grant > 0 {
		y.m.conn.grant(y.id, grant)
	}
}

// endOfFile decides what the end of the bytes was: the FIN of the other side, a
// reset that preceded it, or the end of the session. rmu is held.
func (y *yamuxStream) endOfFile() error {
	if y.m.ys.IsClosed() || !y.m.barrier() {
		return errMuxGone
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.readErr == nil {
		y.readErr = io.EOF
	}
	return y.readErr
}

// readOver is why there is nothing more to read on a connection that is gone.
func (y *yamuxStream) readOver() error {
	if err := y.check(&y.readErr, new(time.Time)); err != nil {
		return err
	}
	return errMuxGone
}

// ack returns the token of an open that the other side has answered. rmu is held.
func (y *yamuxStream) ack() {
	if !y.acked {
		y.acked = true
		<-y.m.unacked
	}
}

// Write implements io.Writer.
func (y *yamuxStream) Write(p []byte) (int, error) {
	y.wmu.Lock()
	defer y.wmu.Unlock()
	for total := 0; ; {
		if err := y.check(&y.writeErr, &y.writeDL); err != nil || len(p) == 0 {
			return total, err
		}
		if y.m.over() {
			return total, errMuxGone
		}
		if _, refused := y.in.ended(); refused {
			return total, errRefused()
		}
		n, more := y.m.conn.windows.take(y.window, min(len(p), y.m.conn.turn.most()))
		if n == 0 {
			y.await(more, y.kick, &y.writeDL)
			continue
		}
		if err := y.m.conn.writeData(y.id, p[:n], y.now); err != nil {
			y.m.fail() // what a part of was written is no frame
			return total, errMuxGone
		}
		total += n
		if p = p[n:]; len(p) == 0 {
			return total, nil
		}
	}
}

// tryWrite writes p if that can be done without waiting for anything or anybody. It returns false, and has written nothing, if not.
func (y *yamuxStream) tryWrite(p []byte) bool {
	if !y.wmu.TryLock() {
		return false
	}
	defer y.wmu.Unlock()
	if _, refused := y.in.ended(); refused || y.m.over() || y.check(&y.writeErr, &y.writeDL) != nil {
		return false
	}
	wrote, err := y.m.conn.tryWriteData(y.window, y.id, p)
	if err != nil {
		y.m.fail() // as in Write, which then says so
	}
	return wrote && err == nil
}

// kickWriter has a Write that waits look at its deadline, and whether it may go on.
func (y *yamuxStream) kickWriter() {
	select {
	case y.kick <- struct{}{}:
	default:
	}
}

// check returns why there is no more reading (or writing) at this moment.
func (y *yamuxStream) check(over *error, deadline *time.Time) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	if *over != nil {
		return *over
	}
	if !deadline.IsZero() && !time.Now().Before(*deadline) {
		return errTimeout
	}
	return nil
}

func (y *yamuxStream) SetReadDeadline(t time.Time) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.readErr != nil || y.m.gone.Load() {
		return nil // a kick must not be taken back
	}
	y.readDL = t
	y.in.poke()
	return nil
}

func (y *yamuxStream) SetWriteDeadline(t time.Time) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.writeErr != nil || y.m.gone.Load() {
		return nil
	}
	y.writeDL = t
	y.kickWriter()
	return nil
}

// release kicks out whoever waits, as the connection is gone. What has arrived can still be read.
func (y *yamuxStream) release() {
	y.in.poke()
	y.kickWriter()
}

// stopReading and stopWriting let nobody in any more and kick out who is. mu is held.
func (y *yamuxStream) stopReading(why error) {
	if y.readErr == nil {
		y.readErr = why
		y.in.poke()
	}
}

func (y *yamuxStream) stopWriting(why error) {
	if y.writeErr == nil {
		y.writeErr = why
		y.kickWriter()
	}
}

func (y *yamuxStream) closeWrite() error {
	if !y.wmu.TryLock() {
		// A write is under way. What it has not sent is lost, so this is no clean end.
		y.abortWrite(wire.Canceled)
		return nil
	}
	defer y.wmu.Unlock()
	y.mu.Lock()
	if err := y.writeErr; err != nil {
		y.mu.Unlock()
		return err
	}
	y.writeErr = errStreamClosed
	y.mu.Unlock()
	return y.sendFIN()
}

// abortWrite ends what is written here abnormally; reading goes on.
func (y *yamuxStream) abortWrite(code wire.Code) {
	y.mu.Lock()
	y.stopWriting(&ResetError{Code: code})
	y.mu.Unlock()
	y.m.spawn(func() {
		if y.m.sendReset(wire.Reset{Stream: y.id, Code: code, What: wire.ResetSend}) {
			y.fin()
		}
	})
}

func (y *yamuxStream) close() {
	abnormal := !y.wmu.TryLock() // as in closeWrite
	if !abnormal {
		defer y.wmu.Unlock()
	}
	y.end(wire.OK, errStreamClosed, abnormal)
}

func (y *yamuxStream) reset(code wire.Code) {
	y.end(code, &ResetError{Code: code}, true)
}

// end closes both directions; abnormal says whether the other side is to take
// what it read for incomplete. If it is not, wmu is held.
func (y *yamuxStream) end(code wire.Code, why error, abnormal bool) {
	y.mu.Lock()
	if y.ended {
		y.mu.Unlock()
		return
	}
	y.ended = true
	var what byte // nothing that the other side has said itself
	if y.readErr == nil {
		what |= wire.ResetStop
	}
	if abnormal && y.writeErr == nil {
		what |= wire.ResetSend
	}
	y.stopReading(why)
	y.stopWriting(why)
	y.mu.Unlock()
	y.in.handTo(nil)
	if what == 0 && !abnormal && y.finned && y.finishNow() {
		return
	}
	y.m.spawn(func() { y.finish(wire.Reset{Stream: y.id, Code: code, What: what}) })
}

// finishNow is finish for a stream on which both sides have said all, as it is with most. It returns false, and does nothing, if somebody
// is about to read it.
func (y *yamuxStream) finishNow() bool {
	if !y.rmu.TryLock() {
		return false
	}
	defer y.rmu.Unlock()
	if over, _ := y.in.ended(); !over {
		return false
	}
	y.ack()
	y.m.forget(y)
	return true
}

// finish says what there is to say, and stays until the other side has said it too.
func (y *yamuxStream) finish(r wire.Reset) {
	if r.What == 0 || y.m.sendReset(r) { // before the FIN
		y.fin()
	}
	y.rmu.Lock()
	defer y.rmu.Unlock()
	y.drain()
	y.ack()
	if r.What&wire.ResetStop != 0 {
		y.m.barrier() // a reset that went before the FIN still finds the stream
	}
	y.m.forget(y)
}

// drain passes over what comes until the other side's end. It gets no more grants. rmu is held.
func (y *yamuxStream) drain() {
	for {
		y.in.discard()
		if over, _ := y.in.ended(); over || y.m.over() {
			return
		}
		y.await(y.in.wake, nil, new(time.Time))
	}
}

// fin sends the FIN, unless it went before.
func (y *yamuxStream) fin() {
	y.wmu.Lock()
	defer y.wmu.Unlock()
	_ = y.sendFIN()
}

// sendFIN is fin. wmu is held.
func (y *yamuxStream) sendFIN() error {
	if y.finned {
		return nil
	}
	y.finned = true
	if y.m.over() {
		return errMuxGone
	}
	if err := y.m.conn.end(y.id, y.in.finished()); err != nil {
		y.m.fail()
		return errMuxGone
	}
	return nil
}

// obey does what a reset of the other side says.
func (y *yamuxStream) obey(r wire.Reset) {
	why := &ResetError{Code: r.Code, Remote: true}
	y.mu.Lock()
	if r.What&wire.ResetSend != 0 {
		y.stopReading(why)
	}
	stop := r.What&wire.ResetStop != 0 && y.writeErr == nil
	if stop {
		y.stopWriting(why)
	}
	aborted := y.aborted
	y.aborted = nil
	y.mu.Unlock()
	if stop {
		y.m.spawn(y.fin)
	}
	if aborted != nil {
		aborted()
	}
}

func (y *yamuxStream) onAbort(f func()) func() {
	y.mu.Lock()
	var reset *ResetError
	now := errors.As(y.writeErr, &reset) || errors.As(y.readErr, &reset)
	if !now {
		y.aborted = f
	}
	y.mu.Unlock()
	if now {
		f()
	}
	return func() {
		y.mu.Lock()
		y.aborted = nil
		y.mu.Unlock()
	}
}
