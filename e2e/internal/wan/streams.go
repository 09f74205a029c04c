package wan

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// chunk is how much is written and read at once.
const chunk = 32 << 10

// serveStream answers a stream by its target: echo gives back what comes, sink counts it and says so at the end,
// source/N gives N bytes, stall never answers.
func serveStream(ctx context.Context, _ *tunnel.Session, r *tunnel.Request) {
	what, arg, _ := strings.Cut(r.Target, "/")
	if what == "stall" {
		<-ctx.Done()
		return
	}
	serve := map[string]func(*tunnel.Stream, string) error{"echo": echo, "sink": sink, "source": source}[what]
	if serve == nil {
		_ = r.Refuse(wire.NotFound, "want echo, sink, source/N or stall")
		return
	}
	st, err := r.Accept()
	if err != nil {
		return
	}
	if serve(st, arg) != nil {
		_ = st.Reset(wire.Internal)
	}
	_ = st.Close()
}

func echo(st *tunnel.Stream, _ string) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{st}, struct{ io.Reader }{st}, make([]byte, chunk))
	return errors.Join(err, st.CloseWrite())
}

func sink(st *tunnel.Stream, _ string) error {
	n, took, err := drain(st, time.Time{})
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint64(nil, uint64(n))
	_, err = st.Write(binary.BigEndian.AppendUint64(b, uint64(took)))
	return err
}

func source(st *tunnel.Stream, arg string) error {
	n, err := strconv.ParseInt(arg, 10, 64)
	if err != nil {
		return err
	}
	return errors.Join(fill(st, n, time.Time{}), st.CloseWrite())
}

// drain reads to the end, or until a time that is not zero. took is from the first byte to the last.
func drain(st *tunnel.Stream, until time.Time) (n int64, took time.Duration, err error) {
	buf := make([]byte, chunk)
	_ = st.SetReadDeadline(until)
	var first, last time.Time
	for {
		m, err := st.Read(buf)
		if m > 0 {
			n, last = n+int64(m), time.Now()
			if first.IsZero() {
				first = last
			}
		}
		var late interface{ Timeout() bool }
		switch {
		case err == io.EOF, !until.IsZero() && errors.As(err, &late) && late.Timeout():
			return n, last.Sub(first), nil
		case err != nil:
			return n, last.Sub(first), fmt.Errorf("after %d bytes: %w", n, err)
		}
	}
}

// fill writes n bytes, or stops at a time that is not zero.
func fill(st *tunnel.Stream, n int64, until time.Time) error {
	buf := make([]byte, chunk)
	for left := n; left > 0 && (until.IsZero() || time.Now().Before(until)); {
		m, err := st.Write(buf[:min(left, chunk)])
		left -= int64(m)
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", n-left, err)
		}
	}
	return nil
}

// forever is more than any test moves.
const forever = 1 << 50

// onSession carries out the commands that need a session:
//
//	echo N SIZE   N times SIZE bytes there and back on one stream
//	up N, down N  N bytes to the other side, or from it
//	uprate D      bytes to the other side for a duration D; downrate: from it. Took and Bytes are the receiver's.
//	opens N T     N streams to target T, opened at once; Values count how that went, by code
//	ping          a heartbeat
//	close         the session
func onSession(s *tunnel.Session, verb, arg string) (Event, error) {
	ctx := context.Background()
	args := strings.Fields(arg)
	number := func(i int) int64 {
		if i >= len(args) {
			return 0
		}
		n, _ := strconv.ParseInt(args[i], 10, 64)
		return n
	}
	switch verb {
	case "echo":
		return measured(0, 0, talk(ctx, s, number(0), number(1)))
	case "up":
		return push(ctx, s, number(0), time.Time{})
	case "down":
		return pull(ctx, s, number(0), time.Time{})
	case "uprate", "downrate":
		d, err := time.ParseDuration(arg)
		if err != nil {
			return Event{}, err
		}
		if verb == "uprate" {
			return push(ctx, s, forever, time.Now().Add(d))
		}
		return pull(ctx, s, forever, time.Now().Add(d))
	case "opens":
		return openMany(ctx, s, int(number(0)), args[1]), nil
	case "ping":
		err := s.Probe(ctx)
		return measured(0, s.Stats().RTT, err)
	case "close":
		return measured(0, 0, s.Close(wire.Shutdown, "as the test wants it"))
	}
	return Event{}, fmt.Errorf("no such command as %q", verb)
}

func measured(n int64, took time.Duration, err error) (Event, error) {
	return Event{Bytes: n, Took: took}, err
}

// talk sends words and waits for each to come back, as somebody in a shell would.
func talk(ctx context.Context, s *tunnel.Session, n, size int64) error {
	st, err := s.Open(ctx, wire.KindDial, "echo")
	if err != nil {
		return err
	}
	defer st.Close()
	word := make([]byte, size)
	for range n {
		if _, err := st.Write(word); err != nil {
			return err
		}
		if _, err := io.ReadFull(struct{ io.Reader }{st}, word); err != nil {
			return err
		}
	}
	return nil
}

func push(ctx context.Context, s *tunnel.Session, n int64, until time.Time) (Event, error) {
	st, err := s.Open(ctx, wire.KindDial, "sink")
	if err != nil {
		return Event{}, err
	}
	defer st.Close()
	if err := fill(st, n, until); err != nil {
		return Event{}, err
	}
	if err := st.CloseWrite(); err != nil {
		return Event{}, err
	}
	var b [16]byte
	if _, err := io.ReadFull(struct{ io.Reader }{st}, b[:]); err != nil {
		return Event{}, fmt.Errorf("the sink's count: %w", err)
	}
	return measured(int64(binary.BigEndian.Uint64(b[:])), time.Duration(binary.BigEndian.Uint64(b[8:])), nil)
}

func pull(ctx context.Context, s *tunnel.Session, n int64, until time.Time) (Event, error) {
	st, err := s.Open(ctx, wire.KindDial, fmt.Sprintf("source/%d", n))
	if err != nil {
		return Event{}, err
	}
	defer st.Close()
	got, took, err := drain(st, until)
	if err == nil && until.IsZero() && got != n {
		err = fmt.Errorf("%d bytes came of %d", got, n)
	}
	return measured(got, took, err)
}

// openMany opens streams all at once. Took is the slowest's time.
func openMany(ctx context.Context, s *tunnel.Session, n int, target string) Event {
	var (
		wg  sync.WaitGroup
		mu  sync.Mutex // guards the following
		all = Event{Values: map[string]float64{}}
	)
	for range n {
		wg.Go(func() {
			began := time.Now()
			st, err := s.Open(ctx, wire.KindDial, target)
			took := time.Since(began)
			if err == nil {
				_ = st.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			all.Values[codeOf(err)]++
			all.Took = max(all.Took, took)
		})
	}
	wg.Wait()
	return all
}

// codeOf names how an open went.
func codeOf(err error) string {
	var refused *tunnel.RefusedError
	var closed *tunnel.ClosedError
	switch {
	case err == nil:
		return wire.OK.String()
	case errors.As(err, &refused):
		return refused.Code.String()
	case errors.As(err, &closed):
		return "session closed"
	}
	return err.Error()
}
