package bidi

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// FuzzConnection: whatever a client writes, its connection ends once it has, with all of its streams; no handler is given more than came, and no more is sent
// than messages were given and frames came.
func FuzzConnection(f *testing.F) {
	script := func(do func(fr *http2.Framer)) {
		var b bytes.Buffer
		do(http2.NewFramer(&b, nil))
		f.Add(b.Bytes())
	}
	var h bytes.Buffer
	e := hpack.NewEncoder(&h)
	for i := 0; i < len(request); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: request[i], Value: request[i+1]})
	}
	script(func(fr *http2.Framer) {
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 7})
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: h.Bytes()})
		_ = fr.WriteData(1, false, message([]byte("word"))[:7])
		_ = fr.WritePing(false, bandwidthPing)
		_ = fr.WriteData(1, false, message([]byte("word"))[7:])
		_ = fr.WriteWindowUpdate(1, 3)
		_ = fr.WriteWindowUpdate(0, 3)
		_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 2})
		_ = fr.WriteData(1, true, message(nil))
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: h.Bytes()[:4]})
		_ = fr.WriteContinuation(3, true, h.Bytes()[4:])
		_ = fr.WriteDataPadded(3, false, message(make([]byte, 9000)), make([]byte, 9))
		_ = fr.WriteRSTStream(3, http2.ErrCodeCancel)
		_ = fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	})
	script(func(fr *http2.Framer) {
		_ = fr.WriteSettings()
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: h.Bytes()})
		_ = fr.WriteData(1, false, []byte{1, 0, 0, 0, 0})
	})
	var took int64
	take := echo()
	s := serve(f, func(h *handler, m *Message) error {
		took += int64(len(m.Bytes()))
		return take(h, m)
	})
	f.Fuzz(func(t *testing.T, b []byte) {
		conn, err := net.Dial("unix", s.path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(limit))
		took = 0
		go func() {
			_, _ = conn.Write(append([]byte(preface), b...))
			_ = conn.(*net.UnixConn).CloseWrite()
		}()
		sent, err := io.Copy(io.Discard, conn)
		if err != nil && sent == 0 {
			t.Logf("nothing came: %v", err) // a connection that is closed with bytes unread
		}
		select {
		case <-s.ended:
		case <-time.After(limit):
			t.Fatal("the connection does not end")
		}
		if took > int64(len(b)) {
			t.Fatalf("%d bytes of messages came from %d bytes", took, len(b))
		}
		if most := int64(200 + 200*len(b)); sent > most {
			t.Fatalf("%d bytes were sent for %d", sent, len(b))
		}
		for len(s.streams) > 0 {
			h := <-s.streams
			<-h.waits
		}
	})
}
