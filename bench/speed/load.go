package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// tryBytes is what a transfer is first measured with, to know how many bytes take how long.
	tryBytes = 8 << 20
	mostTry  = 512 << 20
	// manyStreams is how many the second figure of a direction has.
	manyStreams = 8
	// dialers is how many dials are made at a time.
	dialers = 8
	// opTimeout bounds one operation of the load, which takes seconds at the most.
	opTimeout = time.Minute
)

// durations say for how long each is measured.
type durations struct {
	transfer time.Duration // of the bytes of one direction
	pings    time.Duration
	dials    time.Duration
}

// load measures one chain.
type load struct {
	dial dialFunc
	durations
}

// down returns bytes a second that streams of them take together from the target.
func (l load) down(ctx context.Context, streams int) (rate float64, bytes int64, err error) {
	return l.paced(ctx, streams, l.downOnce)
}

// up returns bytes a second that the target takes from streams of them together.
func (l load) up(ctx context.Context, streams int) (rate float64, bytes int64, err error) {
	return l.paced(ctx, streams, l.upOnce)
}

// paced finds how many bytes take about as long as is to be measured, and measures that.
func (l load) paced(ctx context.Context, streams int, once func(context.Context, int64) error) (float64, int64, error) {
	all := func(each int64) (time.Duration, error) {
		g, ctx := errgroup.WithContext(ctx)
		start := time.Now()
		for range streams {
			g.Go(func() error { return once(ctx, each) })
		}
		err := g.Wait()
		return time.Since(start), err
	}
	total := int64(0)
	for each := int64(tryBytes / streams); ; {
		took, err := all(each)
		total += each * int64(streams)
		if err != nil {
			return 0, total, err
		}
		rate := float64(each*int64(streams)) / took.Seconds()
		if took >= l.transfer*2/3 {
			return rate, total, nil
		}
		each = min(int64(rate*l.transfer.Seconds()*1.05)/int64(streams), each*mostTry/tryBytes)
	}
}

// with makes a connection for one operation.
func (l load) with(ctx context.Context, op byte, do func(net.Conn) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, opTimeout, fmt.Errorf("it took longer than %s", opTimeout))
	defer cancel()
	c, err := l.dial(ctx)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	_, err = c.Write([]byte{op})
	if err == nil {
		err = do(c)
	}
	if !stop() {
		return errors.Join(context.Cause(ctx), err)
	}
	c.Close()
	return err
}

func (l load) downOnce(ctx context.Context, n int64) error {
	return l.with(ctx, opDown, func(c net.Conn) error {
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(n))); err != nil {
			return err
		}
		return discard(c, n)
	})
}

func (l load) upOnce(ctx context.Context, n int64) error {
	return l.with(ctx, opUp, func(c net.Conn) error {
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(n))); err != nil {
			return err
		}
		if err := send(c, n); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	})
}

// pingPong returns the times that one byte takes to the target and back, sorted.
func (l load) pingPong(ctx context.Context) (times []time.Duration, err error) {
	err = l.with(ctx, opEcho, func(c net.Conn) error {
		b := []byte{1}
		for start := time.Now(); time.Since(start) < l.pings; {
			before := time.Now()
			if err := echo(c, b); err != nil {
				return err
			}
			times = append(times, time.Since(before))
		}
		return nil
	})
	slices.Sort(times)
	return times, err
}

// echo has the target answer what is in b.
func echo(c net.Conn, b []byte) error {
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}

// dialOnce dials and returns how long it was until the first byte had come back.
func (l load) dialOnce(ctx context.Context) (took time.Duration, err error) {
	start := time.Now()
	err = l.with(ctx, opEcho, func(c net.Conn) error {
		err := echo(c, []byte{1})
		took = time.Since(start)
		return err
	})
	return took, err
}

// dialMany dials with several at a time, each until the first byte has come back, and returns how many that was a second, and the
// times that they took, sorted.
func (l load) dialMany(ctx context.Context) (rate float64, times []time.Duration, err error) {
	var mu sync.Mutex // guards times
	g, ctx := errgroup.WithContext(ctx)
	start := time.Now()
	for range dialers {
		g.Go(func() error {
			for time.Since(start) < l.dials {
				took, err := l.dialOnce(ctx)
				if err != nil {
					return err
				}
				mu.Lock()
				times = append(times, took)
				mu.Unlock()
			}
			return nil
		})
	}
	err = g.Wait()
	slices.Sort(times)
	return float64(len(times)) / time.Since(start).Seconds(), times, err
}

// quantile of sorted times.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
