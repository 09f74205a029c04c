package bidi

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// conn is one connection. One goroutine reads it.
type conn struct {
	cfg  Config
	conn net.Conn
	w    *writer
	work sync.WaitGroup

	// Of the one who reads.
	source *source
	framer *http2.Framer
	last   uint32 // stream that the client opened
	ahead  int    // bytes that the client may send
	taken  int    // of which it was not told yet

	mu      sync.Mutex // guards the following, and what streams say it does
	streams map[uint32]*Stream
	live    int // of them are not silent
	window  int // what the client takes on all streams
	initial int // what it takes on a new one
}

func newConn(nc net.Conn, early []byte, cfg Config) *conn {
	c := &conn{cfg: cfg, conn: nc, streams: map[uint32]*Stream{}, ahead: connWindow, window: firstWindow, initial: firstWindow}
	c.w = newWriter(nc, &c.work, cmp.Or(cfg.aWhile, aWhile))
	c.source = newSource(nc, early, c.w.push)
	c.framer = http2.NewFramer(io.Discard, c.source)
	c.framer.SetMaxReadFrameSize(maxFrame)
	c.framer.MaxHeaderListSize = maxHeaders
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil) // RFC 9113, section 6.5.2: what a table has at first
	return c
}

// broken is a *ProtocolError.
func broken(code http2.ErrCode, why string, a ...any) error {
	return &ProtocolError{code: code, why: fmt.Sprintf(why, a...)}
}

// ProtocolError is why a connection was ended for what its client did (RFC 9113, section 5.4.1), who was told the same.
type ProtocolError struct {
	code http2.ErrCode
	why  string
}

// Error implements error.
func (e *ProtocolError) Error() string { return e.why + " (" + e.code.String() + ")" }

// read reads the connection to its end.
func (c *conn) read() error {
	defer c.source.free()
	if c.cfg.Patience > 0 {
		_ = c.conn.SetReadDeadline(time.Now().Add(c.cfg.Patience))
	}
	var got [len(preface)]byte
	if _, err := io.ReadFull(c.source, got[:]); err != nil {
		return err
	}
	if string(got[:]) != preface {
		return broken(http2.ErrCodeProtocol, "no preface of HTTP/2")
	}
	c.greet() // with what answers the client's settings, which are there already
	for first := true; ; first = false {
		h, err := c.framer.ReadFrameHeader()
		if err == nil {
			if first && (h.Type != http2.FrameSettings || h.Flags.Has(http2.FlagSettingsAck)) {
				return broken(http2.ErrCodeProtocol, "settings come first")
			}
			if h.Type == http2.FrameData {
				err = c.data(h)
			} else {
				err = c.frame(h)
			}
		}
		var one http2.StreamError
		var all http2.ConnectionError
		switch {
		case errors.As(err, &one) && h.Type == http2.FrameHeaders && one.Cause == nil: // nor was its part of the table read
			err = broken(one.Code, "headers can't be read")
		case errors.As(err, &one):
			err = c.reset(h.Type, one)
		case errors.As(err, &all) && c.framer.ErrorDetail() != nil:
			err = broken(http2.ErrCode(all), "%v", c.framer.ErrorDetail())
		case errors.As(err, &all):
			err = broken(http2.ErrCode(all), "a frame of type %v can't be read", h.Type)
		case errors.Is(err, http2.ErrFrameTooLarge):
			err = broken(http2.ErrCodeFrameSize, "a frame is larger than %d bytes", maxFrame)
		}
		if err != nil {
			return err
		}
		if first && c.cfg.Patience > 0 {
			_ = c.conn.SetReadDeadline(time.Time{})
		}
	}
}

// greet sends what the client may do.
func (c *conn) greet() {
	c.w.add(func(b []byte) []byte {
		settings := []http2.Setting{
			{ID: http2.SettingMaxConcurrentStreams, Val: uint32(c.cfg.MaxStreams)},
			{ID: http2.SettingInitialWindowSize, Val: streamWindow},
			{ID: http2.SettingMaxHeaderListSize, Val: maxHeaders},
		}
		b = appendFrame(b, 6*len(settings), http2.FrameSettings, 0, 0)
		for _, s := range settings {
			b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
			b = binary.BigEndian.AppendUint32(b, s.Val)
		}
		return appendWindowUpdate(b, 0, connWindow-firstWindow)
	})
}

func appendWindowUpdate(b []byte, stream uint32, n int) []byte {
	b = appendFrame(b, 4, http2.FrameWindowUpdate, 0, stream)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

func appendReset(b []byte, stream uint32, code http2.ErrCode) []byte {
	b = appendFrame(b, 4, http2.FrameRSTStream, 0, stream)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

// queue has frames sent before the connection is waited for again.
func (c *conn) queue(frames func(b []byte) []byte) error {
	if !c.w.add(frames) {
		return broken(http2.ErrCodeEnhanceYourCalm, "the answers are not read")
	}
	return nil
}

// frame does what a frame says that is not one of data.
func (c *conn) frame(h http2.FrameHeader) error {
	f, err := c.framer.ReadFrameForHeader(h)
	if err != nil {
		return err
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return c.headers(f)
	case *http2.RSTStreamFrame:
		return c.resetByClient(f.StreamID)
	case *http2.WindowUpdateFrame:
		return c.windowUpdate(f.StreamID, int(f.Increment))
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		return c.ping(f)
	case *http2.PushPromiseFrame:
		return broken(http2.ErrCodeProtocol, "clients do not push")
	}
	return nil // such as PRIORITY and GOAWAY; what is not known is passed over
}

// bandwidthPing is what grpc-go's clients send when they get data, to see how much comes until it is answered; they make their window larger for it
// (grpc-go's internal/transport/bdp_estimator.go).
var bandwidthPing = [8]byte{2, 4, 16, 16, 9, 14, 7, 7}

// ping answers a ping. To one that is for the bandwidth the answer goes with the next large message: with short ones it says nothing, and would be for each of
// them a write here, and there a read and the next ping.
func (c *conn) ping(f *http2.PingFrame) error {
	if f.IsAck() {
		return nil
	}
	answer := append(appendFrame(nil, len(f.Data), http2.FramePing, http2.FlagPingAck, 0), f.Data[:]...)
	if f.Data == bandwidthPing {
		c.w.addLater(answer)
		return nil
	}
	return c.queue(func(b []byte) []byte { return append(b, answer...) })
}

// settings applies the client's. Frames that are sent are never larger than all must take, and no table of headers is used.
func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	err := f.ForeachSetting(func(s http2.Setting) error {
		if err := s.Valid(); err != nil {
			code, _ := err.(http2.ConnectionError)
			return broken(http2.ErrCode(code), "setting %v", s)
		}
		if s.ID != http2.SettingInitialWindowSize {
			return nil
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		more := int(s.Val) - c.initial
		c.initial = int(s.Val)
		for _, st := range c.streams {
			if st.window += more; st.window > largestValue {
				return broken(http2.ErrCodeFlowControl, "the window of stream %d is too large", st.id)
			}
			st.wake()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.queue(func(b []byte) []byte { return appendFrame(b, 0, http2.FrameSettings, http2.FlagSettingsAck, 0) })
}

func (c *conn) windowUpdate(id uint32, n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id == 0 {
		if c.window += n; c.window > largestValue {
			return broken(http2.ErrCodeFlowControl, "the window of the connection is too large")
		}
		for _, s := range c.streams {
			s.wake()
		}
		return nil
	}
	s := c.streams[id]
	switch {
	case s == nil && id > c.last:
		return broken(http2.ErrCodeProtocol, "stream %d is not open", id)
	case s == nil: // crossed its end
		return nil
	}
	if s.window += n; s.window > largestValue {
		return http2.StreamError{StreamID: id, Code: http2.ErrCodeFlowControl}
	}
	s.wake()
	return nil
}

// headers opens a stream.
func (c *conn) headers(f *http2.MetaHeadersFrame) error {
	id := f.StreamID
	switch {
	case id%2 == 0:
		return broken(http2.ErrCodeProtocol, "stream %d is not a client's", id)
	case id <= c.last && (len(f.PseudoFields()) > 0 || !f.StreamEnded()):
		return broken(http2.ErrCodeProtocol, "stream %d was opened before", id)
	case id <= c.last: // trailers
		if s := c.stream(id); s != nil {
			c.halfClosed(s)
		}
		return nil
	}
	c.last = id
	if refusal := c.refusal(f); refusal != nil {
		return c.queue(func(b []byte) []byte { // with the end of the stream
			b = appendFrame(b, len(refusal), http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, id)
			b = append(b, refusal...)
			if !f.StreamEnded() {
				b = appendReset(b, id, http2.ErrCodeNo)
			}
			return b
		})
	}
	s := &Stream{c: c, id: id, ahead: streamWindow, room: make(chan struct{}, 1)}
	c.mu.Lock()
	full := c.live >= c.cfg.MaxStreams || len(c.streams) >= 2*c.cfg.MaxStreams
	if !full {
		c.live++
		s.window = c.initial
		c.streams[id] = s
	}
	c.mu.Unlock()
	if full {
		return c.queue(func(b []byte) []byte { return appendReset(b, id, http2.ErrCodeRefusedStream) })
	}
	s.handler = c.cfg.Open(s)
	if f.StreamEnded() {
		c.halfClosed(s)
	}
	return nil
}

// refusal is the answer to a request that is for something else; nil: it is not.
func (c *conn) refusal(f *http2.MetaHeadersFrame) []byte {
	kind := ""
	for _, h := range f.RegularFields() {
		if h.Name == "content-type" {
			kind = h.Value
		}
	}
	const grpcKind = "application/grpc"
	switch rest := strings.TrimPrefix(kind, grpcKind); {
	case f.Truncated:
		return statusBlock(status.Newf(codes.ResourceExhausted, "headers of more than %d bytes", maxHeaders), true)
	case f.PseudoValue("method") != "POST":
		return headerBlock(":status", "405")
	case !strings.HasPrefix(kind, grpcKind) || rest != "" && rest[0] != '+' && rest[0] != ';':
		return headerBlock(":status", "415")
	case f.PseudoValue("path") != c.cfg.Method:
		return statusBlock(status.Newf(codes.Unimplemented, "%.100q is not served here, but %s", f.PseudoValue("path"), c.cfg.Method), true)
	}
	return nil
}

func (c *conn) stream(id uint32) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

func (c *conn) resetByClient(id uint32) error {
	if id > c.last {
		return broken(http2.ErrCodeProtocol, "stream %d is not open", id)
	}
	if s := c.stream(id); s != nil {
		s.cut()
	}
	return nil
}

// reset ends a stream for what the client did to it by a frame.
func (c *conn) reset(kind http2.FrameType, e http2.StreamError) error {
	if e.StreamID > c.last {
		if kind != http2.FrameHeaders {
			return broken(e.Code, "stream %d is not open", e.StreamID)
		}
		c.last = e.StreamID
	}
	if s := c.stream(e.StreamID); s != nil {
		s.cut()
	}
	return c.queue(func(b []byte) []byte { return appendReset(b, e.StreamID, e.Code) })
}

// halfClosed is the client's end of a stream.
func (c *conn) halfClosed(s *Stream) {
	c.mu.Lock()
	s.closedByClient = true
	c.mu.Unlock()
	var err error
	if s.have > 0 {
		err = status.Error(codes.Internal, "the stream ended within a message")
	}
	s.ended(err)
}

// data takes a frame of data, whose parts are handed on as they come.
func (c *conn) data(h http2.FrameHeader) error {
	switch {
	case h.StreamID == 0:
		return broken(http2.ErrCodeProtocol, "data of no stream")
	case h.StreamID > c.last:
		return broken(http2.ErrCodeProtocol, "stream %d is not open", h.StreamID)
	}
	size := int(h.Length)
	if c.ahead -= size; c.ahead < 0 {
		return broken(http2.ErrCodeFlowControl, "more data than the connection's window")
	}
	s := c.stream(h.StreamID) // nil: it crossed the stream's end
	var wrong error
	switch {
	case s == nil:
	case s.closedByClient:
		return broken(http2.ErrCodeStreamClosed, "data behind the end of stream %d", h.StreamID)
	case !c.within(s, size):
		s, wrong = nil, http2.StreamError{StreamID: h.StreamID, Code: http2.ErrCodeFlowControl}
	}
	if err := c.payload(h, s); err != nil {
		return err
	}
	if s != nil && h.Flags.Has(http2.FlagDataEndStream) {
		c.halfClosed(s)
	}
	if s != nil && !s.deaf {
		if err := c.tell(s, size); err != nil {
			return err
		}
	}
	if c.taken += size; c.taken >= connWindow/4 {
		n := c.taken
		c.ahead, c.taken = c.ahead+n, 0
		if err := c.queue(func(b []byte) []byte { return appendWindowUpdate(b, 0, n) }); err != nil {
			return err
		}
	}
	return wrong
}

// within takes what came off what the client may send on a stream.
func (c *conn) within(s *Stream, size int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.ahead -= size
	return s.ahead >= 0
}

// tell tells the client that it may send n bytes more on a stream, in steps, and not while it is paused.
func (c *conn) tell(s *Stream, n int) error {
	c.mu.Lock()
	s.taken += n
	more := 0
	if s.paused == 0 && s.taken >= streamWindow/2 && !s.closedByClient {
		more = s.taken
		s.ahead, s.taken = s.ahead+more, 0
	}
	c.mu.Unlock()
	if more == 0 {
		return nil
	}
	return c.queue(func(b []byte) []byte { return appendWindowUpdate(b, s.id, more) })
}

// payload hands what is in a frame of data on to its stream; nil: to nobody.
func (c *conn) payload(h http2.FrameHeader, s *Stream) error {
	rest, padding, err := c.padding(h)
	if err != nil {
		return err
	}
	for rest > 0 {
		b, err := c.source.next(rest)
		if err != nil {
			return err
		}
		rest -= len(b)
		if s != nil && !s.deaf {
			if err := s.take(b); err != nil {
				s.ended(err)
			}
		}
	}
	for padding > 0 {
		b, err := c.source.next(padding)
		if err != nil {
			return err
		}
		padding -= len(b)
	}
	return nil
}

// padding returns how much of a frame of data is data, and how much is behind that.
func (c *conn) padding(h http2.FrameHeader) (data, behind int, err error) {
	data = int(h.Length)
	if !h.Flags.Has(http2.FlagDataPadded) {
		return data, 0, nil
	}
	if data == 0 {
		return 0, 0, broken(http2.ErrCodeFrameSize, "padding of no length")
	}
	b, err := c.source.next(1)
	if err != nil {
		return 0, 0, err
	}
	behind = int(b[0])
	if data -= 1 + behind; data < 0 {
		return 0, 0, broken(http2.ErrCodeProtocol, "padding of more than the frame")
	}
	return data, behind, nil
}

// end ends all that is open. err is why, and said to the client where that is its fault.
func (c *conn) end(err error) {
	var fault *ProtocolError
	if errors.As(err, &fault) {
		c.w.add(func(b []byte) []byte {
			b = appendFrame(b, 8+len(fault.why), http2.FrameGoAway, 0, 0)
			b = binary.BigEndian.AppendUint32(b, c.last)
			b = binary.BigEndian.AppendUint32(b, uint32(fault.code))
			return append(b, fault.why...)
		})
		c.w.push()
	}
	c.w.close()
	c.mu.Lock()
	var all []*Stream
	for _, s := range c.streams {
		all = append(all, s)
	}
	c.mu.Unlock()
	for _, s := range all {
		s.cut()
	}
}
