package bidi

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit is how long a test waits for what should happen at once.
const limit = 10 * time.Second

const method = "/test.Test/Call"

// handler is one that a test decides for.
type handler struct {
	s     *Stream
	take  func(*handler, *Message) error
	work  sync.WaitGroup
	over  chan struct{} // closed by Ended
	waits chan struct{} // closed by Wait
}

func (h *handler) Take(m *Message) error { return h.take(h, m) }
func (h *handler) Ended()                { close(h.over) }
func (h *handler) Wait()                 { close(h.waits); h.work.Wait() }

// server serves a method on a unix socket.
type server struct {
	path    string
	streams chan *handler // as they are opened
	ended   chan error    // as connections end
}

func serve(t testing.TB, take func(*handler, *Message) error, change ...func(*Config)) *server {
	t.Helper()
	s := &server{path: filepath.Join(t.TempDir(), "s"), streams: make(chan *handler, 4096), ended: make(chan error, 64)}
	cfg := Config{Method: method, MaxMessage: 1 << 20, MaxStreams: 100, Patience: limit, Open: func(st *Stream) Handler {
		h := &handler{s: st, take: take, over: make(chan struct{}), waits: make(chan struct{})}
		select {
		case s.streams <- h:
		default: // a test that opens more looks at none
		}
		return h
	}}
	for _, c := range change {
		c(&cfg)
	}
	l, err := net.Listen("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { s.ended <- Serve(c, nil, cfg) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return s
}

// echo sends each message back, by who reads it if that waits for nothing, and else by another goroutine, in order.
func echo() func(h *handler, m *Message) error {
	var mu sync.Mutex
	queues := map[*handler]chan Held{}
	return func(h *handler, m *Message) error {
		mu.Lock()
		defer mu.Unlock()
		q := queues[h]
		if q == nil {
			if len(m.Bytes()) < 100 && h.s.TrySend(m.Bytes()[:len(m.Bytes())/2], m.Bytes()[len(m.Bytes())/2:]) {
				return nil
			}
			q = make(chan Held, 10_000)
			queues[h] = q
			h.work.Go(func() {
				for {
					select {
					case b := <-q:
						_ = h.s.Send(b.Bytes[:len(b.Bytes)/3], b.Bytes[len(b.Bytes)/3:])
						b.Free()
						continue
					case <-h.over:
					}
					select { // what came before the end
					case b := <-q:
						_ = h.s.Send(nil, b.Bytes)
						b.Free()
					default:
						return
					}
				}
			})
		}
		q <- m.Keep(m.Bytes())
		return nil
	}
}

type hpackField = hpack.HeaderField

// client is one that writes frames as it likes.
type client struct {
	*http2.Framer
	t    testing.TB
	conn net.Conn
	enc  *hpack.Encoder
	buf  bytes.Buffer
}

// dial connects, and exchanges settings.
func (s *server) dial(t testing.TB, settings ...http2.Setting) *client {
	t.Helper()
	c := s.connect(t)
	c.settle(settings...)
	return c
}

func (s *server) connect(t testing.TB) *client {
	t.Helper()
	conn, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(limit))
	return s.on(t, conn)
}

func (s *server) on(t testing.TB, conn net.Conn) *client {
	c := &client{Framer: http2.NewFramer(conn, conn), t: t, conn: conn}
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.enc = hpack.NewEncoder(&c.buf)
	return c
}

func (c *client) settle(settings ...http2.Setting) {
	c.t.Helper()
	c.write([]byte(preface))
	c.must(c.WriteSettings(settings...))
	for n := 0; n < 3; n++ { // settings, a window, and that ours were taken
		switch f := c.next().(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				c.must(c.WriteSettingsAck())
			}
		case *http2.WindowUpdateFrame:
		default:
			c.t.Fatalf("%v came", f)
		}
	}
}

func (c *client) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) write(b []byte) {
	c.t.Helper()
	_, err := c.conn.Write(b)
	c.must(err)
}

func (c *client) next() http2.Frame {
	c.t.Helper()
	f, err := c.ReadFrame()
	c.must(err)
	return f
}

// block is headers as a client writes them.
func (c *client) block(pairs ...string) []byte {
	c.buf.Reset()
	for i := 0; i < len(pairs); i += 2 {
		c.must(c.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]}))
	}
	return bytes.Clone(c.buf.Bytes())
}

var request = []string{":method", "POST", ":scheme", "http", ":path", method, ":authority", "x", "content-type", "application/grpc", "te", "trailers"}

// open opens a stream.
func (c *client) open(id uint32) {
	c.t.Helper()
	c.must(c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, BlockFragment: c.block(request...)}))
}

// message is one as it is in frames of data.
func message(b []byte) []byte { return append(appendPrefix(nil, len(b)), b...) }

// wantStatus reads up to the end of a stream, and wants it to have this status.
func (c *client) wantStatus(id uint32, code string) {
	c.t.Helper()
	for {
		f := c.next()
		if h, ok := f.(*http2.MetaHeadersFrame); ok && h.StreamID == id && h.StreamEnded() {
			got := ""
			for _, f := range h.Fields {
				if f.Name == "grpc-status" {
					got = f.Value
				}
			}
			if got != code {
				c.t.Errorf("stream %d ended with %v, want status %s", id, h.Fields, code)
			}
			return
		}
		if r, ok := f.(*http2.RSTStreamFrame); ok && r.StreamID == id {
			c.t.Fatalf("stream %d was reset: %v", id, r)
		}
	}
}

// wantReset reads up to the reset of a stream.
func (c *client) wantReset(id uint32, code http2.ErrCode) {
	c.t.Helper()
	for {
		if r, ok := c.next().(*http2.RSTStreamFrame); ok && r.StreamID == id {
			if r.ErrCode != code {
				c.t.Errorf("stream %d was reset with %v, want %v", id, r.ErrCode, code)
			}
			return
		}
	}
}

// wantGoAway reads up to the end of the connection, and wants it to be for this.
func (c *client) wantGoAway(code http2.ErrCode) {
	c.t.Helper()
	said := false
	for {
		f, err := c.ReadFrame()
		if err != nil {
			if !said {
				c.t.Errorf("the connection ended with %v, and nothing was said", err)
			}
			return
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			said = true
			if g.ErrCode != code {
				c.t.Errorf("the connection ends with %v (%s), want %v", g.ErrCode, g.DebugData(), code)
			}
		}
	}
}

// received puts the data of a stream's frames together until there are n bytes.
func (c *client) received(id uint32, n int) []byte {
	c.t.Helper()
	var all []byte
	for len(all) < n {
		if d, ok := c.next().(*http2.DataFrame); ok && d.StreamID == id {
			all = append(all, d.Data()...)
		}
	}
	return all
}

func within(t testing.TB, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(limit):
		t.Fatalf("waited in vain for %s", what)
	}
}

func (s *server) stream(t testing.TB) *handler {
	t.Helper()
	select {
	case h := <-s.streams:
		return h
	case <-time.After(limit):
		t.Fatal("no stream was opened")
	}
	return nil
}

// wantEnded wants a connection to have ended with what contains an error; nil: with the client's own end.
func (s *server) wantEnded(t testing.TB) error {
	t.Helper()
	select {
	case err := <-s.ended:
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	case <-time.After(limit):
		t.Fatal("the connection does not end")
	}
	return nil
}
