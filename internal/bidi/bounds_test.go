package bidi

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestClientThatReadsNothing: who asks for answers and does not read them is stopped, and then cut off. Seen failing without maxQueue (the test's own
// deadline ends it).
func TestClientThatReadsNothing(t *testing.T) {
	s := serve(t, echo())
	c := s.dial(t)
	ping := append(appendFrame(nil, 8, http2.FramePing, 0, 0), make([]byte, 8)...)
	flood := bytes.Repeat(ping, 1000)
	var err error
	for sent := 0; err == nil; sent += len(flood) {
		_, err = c.conn.Write(flood)
	}
	if ended := s.wantEnded(t); ended == nil || !strings.Contains(ended.Error(), "not read") {
		t.Errorf("the connection ended with %v; the client saw %v", ended, err)
	}
}

// TestEndsThatNobodyReads: nor can it have streams ended without end. Seen failing without finish's look at what add says (the queue grows as long as it is sent).
func TestEndsThatNobodyReads(t *testing.T) {
	s := serve(t, echo(), func(c *Config) { c.MaxStreams = 1 << 20 })
	c := s.dial(t)
	b := c.block(request...)
	var err error
	for id := uint32(1); err == nil && id < 200_000; id += 2 {
		err = c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: true, BlockFragment: b})
		b = c.block(request...)
	}
	if err == nil {
		t.Error("all of it was taken")
	}
	if s.wantEnded(t) == nil {
		t.Error("the connection ended in the ordinary way")
	}
}

// TestStreamsThatLinger: a stream that its client has reset does not keep it from opening another, until as many linger as may be open.
func TestStreamsThatLinger(t *testing.T) {
	goOn := make(chan struct{})
	s := serve(t, func(h *handler, m *Message) error {
		h.work.Go(func() { <-goOn })
		return nil
	}, func(c *Config) { c.MaxStreams = 2 })
	defer close(goOn)
	c := s.dial(t)
	for id := uint32(1); id <= 7; id += 2 {
		c.open(id)
		c.must(c.WriteData(id, false, message(nil)))
		c.must(c.WriteRSTStream(id, http2.ErrCodeCancel))
		within(t, s.stream(t).waits, "the end of the stream")
	}
	c.open(9)
	c.wantReset(9, http2.ErrCodeRefusedStream)
}

// TestLastWords: what a client said before it left is taken, also where an answer to it can't be written any more.
func TestLastWords(t *testing.T) {
	for range 20 {
		got := 0
		s := serve(t, func(h *handler, m *Message) error { got += len(m.Bytes()); return nil })
		c := s.dial(t)
		c.open(1)
		var all []byte
		ping := append(appendFrame(nil, 8, http2.FramePing, 0, 0), make([]byte, 8)...)
		m := message(make([]byte, 4000))
		for range 30 {
			all = append(append(append(all, ping...), appendFrame(nil, len(m), http2.FrameData, 0, 1)...), m...)
		}
		c.write(all)
		c.conn.Close()
		_ = s.wantEnded(t)
		if got != 30*4000 {
			t.Fatalf("%d bytes of %d were taken", got, 30*4000)
		}
	}
}

// TestWeight: much that is little weighs what it takes.
func TestWeight(t *testing.T) {
	if w := MessageOf([]byte("x")).Keep([]byte("x")).Weight(); w < 64 {
		t.Errorf("a byte that is kept weighs %d", w)
	}
}

// TestSendersEnd: who waits for a client's window is told of the stream's end, and of the connection's.
func TestSendersEnd(t *testing.T) {
	sent := make(chan error, 1)
	s := serve(t, func(h *handler, m *Message) error {
		h.work.Go(func() { sent <- h.s.Send(nil, make([]byte, 1<<20)) })
		return nil
	})
	for name, end := range map[string]func(c *client){
		"reset":  func(c *client) { c.must(c.WriteRSTStream(1, http2.ErrCodeCancel)) },
		"closed": func(c *client) { c.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c := s.dial(t)
			c.open(1)
			c.must(c.WriteData(1, false, message(nil)))
			c.received(1, firstWindow)
			end(c)
			select {
			case err := <-sent:
				if err == nil {
					t.Error("all of it was sent")
				}
			case <-time.After(limit):
				t.Error("it waits for ever")
			}
		})
	}
}

// TestSilentClients: one that says nothing is cut off in time, and one that has said who it is is not.
func TestSilentClients(t *testing.T) {
	s := serve(t, echo(), func(c *Config) { c.Patience = 100 * time.Millisecond })
	s.connect(t)
	if err := s.wantEnded(t); err == nil {
		t.Error("it ended in the ordinary way")
	}
	c := s.dial(t)
	time.Sleep(300 * time.Millisecond) // nothing happens that could be waited for
	c.open(1)
	c.must(c.WriteData(1, true, nil))
	c.wantStatus(1, "0")
}

// TestPausedStreams: a client is told of no more room while its stream is paused, and of all of it afterwards.
func TestPausedStreams(t *testing.T) {
	taken := make(chan *handler, 1000)
	s := serve(t, func(h *handler, m *Message) error {
		if string(m.Bytes()) == "pause" {
			h.s.Pause()
		}
		taken <- h
		return nil
	})
	c := s.dial(t)
	c.open(1)
	c.must(c.WriteData(1, false, message([]byte("pause"))))
	h := <-taken
	sent := len(message([]byte("pause")))
	for m := message(make([]byte, 15<<10)); sent+len(m) <= streamWindow; sent += len(m) {
		c.must(c.WriteData(1, false, m))
		<-taken
	}
	c.must(c.WritePing(false, [8]byte{1}))
	if f, ok := c.next().(*http2.PingFrame); !ok {
		t.Fatalf("%v came, while the stream is paused", f)
	}
	h.s.Resume()
	if f, ok := c.next().(*http2.WindowUpdateFrame); !ok || f.StreamID != 1 || int(f.Increment) != sent {
		t.Errorf("%v came, want %d bytes more", f, sent)
	}
}
