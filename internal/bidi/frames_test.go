package bidi

import (
	"bytes"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestFrames: what a client may write, in the ways that gRPC's own does not.
func TestFrames(t *testing.T) {
	s := serve(t, echo())
	all := slices.Concat(message([]byte("one")), message(nil), message(bytes.Repeat([]byte("2"), 40)))
	for name, send := range map[string]func(c *client){
		"in one frame": func(c *client) { c.must(c.WriteData(1, true, all)) },
		"byte by byte": func(c *client) {
			for i := range all {
				c.must(c.WriteData(1, i == len(all)-1, all[i:i+1]))
			}
		},
		"padded": func(c *client) {
			c.must(c.WriteDataPadded(1, false, all[:10], make([]byte, 200)))
			c.must(c.WriteDataPadded(1, false, nil, make([]byte, 255)))
			c.must(c.WriteDataPadded(1, true, all[10:], nil))
		},
		"with others in between": func(c *client) {
			c.must(c.WriteData(1, false, all[:7]))
			c.must(c.WritePriority(1, http2.PriorityParam{StreamDep: 3}))
			c.must(c.WriteRawFrame(0x77, 0xff, 1, []byte("nobody knows this")))
			c.must(c.WritePing(false, [8]byte{1}))
			c.must(c.WriteData(1, false, nil))
			c.must(c.WriteData(1, false, all[7:]))
			c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: c.block("a", "trailer")}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := s.dial(t)
			c.open(1)
			send(c)
			if got := c.received(1, len(all)); !bytes.Equal(got, all) {
				t.Errorf("%q came back for %q", got, all)
			}
			c.wantStatus(1, "0")
			c.conn.Close()
			if err := s.wantEnded(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHeaders: in several frames, and those that are no request for what is served. The table of the client's headers lives through all of them.
func TestHeaders(t *testing.T) {
	s := serve(t, echo())
	c := s.dial(t)
	b := c.block(append(slices.Clone(request), "a", strings.Repeat("long ", 20))...)
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:5]}))
	c.must(c.WriteContinuation(1, false, b[5:20]))
	c.must(c.WriteContinuation(1, true, b[20:]))
	c.must(c.WriteData(1, true, nil))
	c.wantStatus(1, "0")
	id := uint32(1)
	for _, r := range []struct {
		change map[string]string
		want   string // grpc-status, or :status
	}{
		{map[string]string{":method": "GET"}, ":status 405"},
		{map[string]string{"content-type": "application/json"}, ":status 415"},
		{map[string]string{"content-type": "application/grpcx"}, ":status 415"},
		{map[string]string{"content-type": ""}, ":status 415"},
		{map[string]string{":path": "/no"}, "grpc-status 12"},
		{map[string]string{"te": strings.Repeat("x", maxHeaders-300), ":authority": strings.Repeat("x", 1000)}, "grpc-status 8"},
		{map[string]string{"content-type": "application/grpc+proto"}, "grpc-status 0"},
	} {
		id += 2
		pairs := slices.Clone(request)
		for i := 0; i < len(pairs); i += 2 {
			if v, ok := r.change[pairs[i]]; ok {
				pairs[i+1] = v
			}
		}
		c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: true, BlockFragment: c.block(pairs...)}))
		for {
			f, err := c.ReadFrame()
			if err != nil {
				t.Fatalf("%.80v: %v; the server says %v", r.change, err, s.wantEnded(t))
			}
			h, ok := f.(*http2.MetaHeadersFrame)
			if !ok {
				continue
			}
			name, value, _ := strings.Cut(r.want, " ")
			if !h.StreamEnded() || h.StreamID != id || !slices.ContainsFunc(h.Fields, func(f hpackField) bool { return f.Name == name && f.Value == value }) {
				t.Errorf("%v is answered with %v", r.change, h.Fields)
			}
			break
		}
	}
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: id + 2, EndHeaders: true, BlockFragment: c.block(append(slices.Clone(request), "UPPER", "case")...)}))
	c.wantReset(id+2, http2.ErrCodeProtocol)
	c.open(id + 4) // the connection goes on
	c.must(c.WriteData(id+4, true, nil))
	c.wantStatus(id+4, "0")
}

// TestWhatEndsAConnection: what no client may do is said to it, and is the end for all of its streams.
func TestWhatEndsAConnection(t *testing.T) {
	for name, c := range map[string]struct {
		code http2.ErrCode
		do   func(c *client)
	}{
		"no settings": {http2.ErrCodeProtocol, func(c *client) {
			c.write([]byte(preface))
			c.must(c.WritePing(false, [8]byte{}))
		}},
		"no preface": {http2.ErrCodeProtocol, func(c *client) { c.write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")) }},
		"a large frame": {http2.ErrCodeFrameSize, func(c *client) {
			c.settle()
			c.open(1)
			c.must(c.WriteData(1, false, make([]byte, maxFrame+1)))
		}},
		"stream 0": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			c.write(append(appendFrame(nil, 1, http2.FrameData, 0, 0), 'x'))
		}},
		"an even stream": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			c.open(2)
		}},
		"a stream twice": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			c.open(3)
			c.open(1)
		}},
		"data of no stream": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			c.must(c.WriteData(5, false, []byte("x")))
		}},
		"a window of no stream": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			c.must(c.WriteWindowUpdate(5, 1))
		}},
		"a reset of no stream": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			c.must(c.WriteRSTStream(5, http2.ErrCodeCancel))
		}},
		"data behind the end": {http2.ErrCodeStreamClosed, func(c *client) {
			c.settle()
			c.open(1)
			c.must(c.WriteData(1, false, message([]byte("x")))) // with a handler that does not end
			c.must(c.WriteData(1, true, nil))
			c.must(c.WriteData(1, false, []byte("x")))
		}},
		"a window too large": {http2.ErrCodeFlowControl, func(c *client) {
			c.settle()
			c.must(c.WriteWindowUpdate(0, largestValue))
		}},
		"settings too large": {http2.ErrCodeFlowControl, func(c *client) {
			c.settle()
			c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: largestValue + 1}))
		}},
		"settings that make a window too large": {http2.ErrCodeFlowControl, func(c *client) {
			c.settle()
			c.open(1)
			c.must(c.WriteWindowUpdate(1, 1<<20))
			c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: largestValue}))
		}},
		"a push": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			c.must(c.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: c.block(request...), EndHeaders: true}))
		}},
		"headers cut short": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(request...)}))
			c.must(c.WritePing(false, [8]byte{}))
		}},
		"headers that nobody began": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			c.must(c.WriteContinuation(1, true, c.block(request...)))
		}},
		"headers with padding too long": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			b := c.block(request...)
			c.write(append(append(appendFrame(nil, 1+len(b), http2.FrameHeaders, http2.FlagHeadersPadded|http2.FlagHeadersEndHeaders, 1), 255), b...))
		}},
		"no more window for no stream": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			c.write(append(appendFrame(nil, 4, http2.FrameWindowUpdate, 0, 9), 0, 0, 0, 0))
		}},
		"headers that nobody can read": {http2.ErrCodeCompression, func(c *client) {
			c.settle()
			c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff}}))
		}},
		"padding too long": {http2.ErrCodeProtocol, func(c *client) {
			c.settle()
			c.open(1)
			c.write(append(appendFrame(nil, 2, http2.FrameData, http2.FlagDataPadded, 1), 2, 'x'))
		}},
		"padding of no length": {http2.ErrCodeFrameSize, func(c *client) {
			c.settle()
			c.open(1)
			c.write(appendFrame(nil, 0, http2.FrameData, http2.FlagDataPadded, 1))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			block := make(chan struct{})
			s := serve(t, func(h *handler, m *Message) error {
				h.work.Go(func() { <-block })
				return nil
			})
			defer close(block)
			cl := s.connect(t)
			c.do(cl)
			cl.wantGoAway(c.code)
		})
	}
}

// TestStreamsThatClientsSpoil: what is wrong with one is its own end.
func TestStreamsThatClientsSpoil(t *testing.T) {
	s := serve(t, func(h *handler, m *Message) error {
		if h.s.id == 1 {
			h.s.Pause() // nothing is given back
		}
		return nil
	}, func(c *Config) { c.MaxStreams = 3 })
	c := s.dial(t)
	c.open(1)
	b := message(make([]byte, 16<<10-100))
	for range streamWindow/len(b) + 2 { // a message has to be taken before it is paused
		c.must(c.WriteData(1, false, b))
	}
	c.wantReset(1, http2.ErrCodeFlowControl)
	within(t, s.stream(t).waits, "the end of the stream")
	c.open(3)
	c.must(c.WriteWindowUpdate(3, largestValue))
	c.wantReset(3, http2.ErrCodeFlowControl)
	c.open(5)
	c.write(append(appendFrame(nil, 4, http2.FrameWindowUpdate, 0, 5), 0, 0, 0, 0))
	c.wantReset(5, http2.ErrCodeProtocol)
	c.open(7)
	c.must(c.WriteData(7, true, message([]byte("whole"))[:8]))
	c.wantStatus(7, "13")
	c.open(9)
	c.must(c.WriteData(9, false, []byte{9, 0, 0, 0, 0}))
	c.wantStatus(9, "13")
	for id := range uint32(3) {
		c.open(11 + 2*id)
	}
	c.open(17)
	c.wantReset(17, http2.ErrCodeRefusedStream)
	c.must(c.WriteRSTStream(11, http2.ErrCodeCancel))
	for id := uint32(19); ; id += 2 { // until the handler has ended
		c.open(id)
		c.must(c.WriteData(id, true, nil))
		f := c.next()
		if h, ok := f.(*http2.MetaHeadersFrame); ok && h.StreamID == id {
			break
		}
		if r, ok := f.(*http2.RSTStreamFrame); !ok || r.ErrCode != http2.ErrCodeRefusedStream {
			t.Fatalf("%v came", f)
		}
	}
}

// TestWindowsAreKept: no more is sent than the client takes, of a stream and of all, and all of it once it does; and settings that make windows smaller, below
// nothing, count.
func TestWindowsAreKept(t *testing.T) {
	s := serve(t, echo())
	c := s.dial(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	c.open(1)
	m := message(bytes.Repeat([]byte("0123456789"), 10))
	c.must(c.WriteData(1, false, m))
	got := c.received(1, 10)
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5})) // 5 less than nothing
	c.must(c.WriteWindowUpdate(1, 5))
	c.must(c.WritePing(false, [8]byte{7}))
	for pong := false; !pong; {
		switch f := c.next().(type) {
		case *http2.DataFrame:
			t.Fatalf("%d bytes came beyond the window", f.Length)
		case *http2.PingFrame:
			pong = true
		}
	}
	c.must(c.WriteWindowUpdate(1, 20))
	got = append(got, c.received(1, 20)...)
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}))
	if got = append(got, c.received(1, len(m)-30)...); !bytes.Equal(got, m) {
		t.Errorf("%q came for %q", got, m)
	}

	// All streams together have 64 KiB, of which some is used.
	c.must(c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}))
	c.open(3)
	for range 6 {
		c.must(c.WriteData(3, false, message(make([]byte, 16<<10-5))))
	}
	left := firstWindow - len(m)
	if got := len(c.received(3, left)); got != left {
		t.Errorf("%d bytes came where the connection's window has %d", got, left)
	}
	c.open(5)
	c.must(c.WriteData(5, false, message(nil)))
	c.must(c.WriteWindowUpdate(0, 1<<20))
	c.received(3, 6*16<<10-left)
}

// TestPings: each is answered, and the one for the bandwidth in a while, where nothing much is sent.
func TestPings(t *testing.T) {
	s := serve(t, echo())
	c := s.dial(t)
	c.must(c.WritePing(false, bandwidthPing))
	c.must(c.WritePing(false, [8]byte{1}))
	for _, want := range [][8]byte{{1}, bandwidthPing} {
		if p, ok := c.next().(*http2.PingFrame); !ok || !p.IsAck() || p.Data != want {
			t.Errorf("%v came, want the answer to %v", p, want)
		}
	}
	c.must(c.WritePing(true, [8]byte{})) // an answer that nobody asked for
}

// TestPingsBesideMuch: the answer to a ping for the bandwidth goes with a long message, behind it; and where one was sent since the last, at once. Seen failing
// without either.
func TestPingsBesideMuch(t *testing.T) {
	s := serve(t, echo(), func(c *Config) { c.aWhile = time.Hour })
	c := s.dial(t)
	c.open(1)
	for range 2 {
		c.must(c.WritePing(false, bandwidthPing))
		c.must(c.WriteData(1, false, message(make([]byte, 10_000))))
		c.received(1, 10_005)
		if p, ok := c.next().(*http2.PingFrame); !ok || p.Data != bandwidthPing {
			t.Errorf("%v came behind the message", p)
		}
		c.must(c.WritePing(false, bandwidthPing))
		if p, ok := c.next().(*http2.PingFrame); !ok || p.Data != bandwidthPing {
			t.Errorf("%v came for one after it", p)
		}
	}
}

// TestPlainConnections: a connection that is no socket is served, too.
func TestPlainConnections(t *testing.T) {
	a, b := net.Pipe()
	ended := make(chan error, 1)
	take := echo()
	go func() {
		ended <- Serve(a, []byte(preface[:7]), Config{Method: method, MaxMessage: 1 << 20, MaxStreams: 10, Open: func(s *Stream) Handler {
			return &handler{s: s, take: take, over: make(chan struct{}), waits: make(chan struct{})}
		}})
	}()
	_ = b.SetDeadline(time.Now().Add(limit))
	s := &server{}
	c := s.on(t, b)
	c.write([]byte(preface[7:]))
	c.must(c.WriteSettings())
	c.next()
	c.next()
	c.next()
	c.open(1)
	m := message(bytes.Repeat([]byte("m"), 5000))
	c.must(c.WriteData(1, false, m))
	if got := c.received(1, len(m)); !bytes.Equal(got, m) {
		t.Errorf("%d bytes came back for %d", len(got), len(m))
	}
	b.Close()
	if err := <-ended; err != io.EOF {
		t.Errorf("it ended with %v", err)
	}
}
