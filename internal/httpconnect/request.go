package httpconnect

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// maxHeader bounds a request, in bytes; the egress selector sends about 100.
	maxHeader = 8 << 10
	// watchAfter is how long a dial may take before anybody looks whether its client still waits for it.
	watchAfter = 100 * time.Millisecond
	// answerTimeout bounds the writing of a refusal.
	answerTimeout = 10 * time.Second
	// lingerTime is how long a client that was refused has to read why, and maxLinger how many bytes of it are passed over meanwhile:
	// closing with some unread would have the kernel take the answer back.
	lingerTime = 500 * time.Millisecond
	maxLinger  = 64 << 10
)

// Request is the one request of a connection. It is answered once, by Accept or by Refuse. Not safe for concurrent use.
type Request struct {
	// Target is what is to be dialled, as it was sent.
	Target string
	Header http.Header

	conn  net.Conn
	early []byte // what followed the request, and was read with it

	watching *time.Timer // nil: the client is not watched
	cancel   context.CancelFunc
	looked   chan struct{} // closed once nobody looks any more
}

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 1<<10) }}

// Read reads the request of a connection, of which early was read before. The deadline is the caller's to set, and to take away. What is no
// CONNECT request of HTTP/1 is answered and not returned: with an error, nothing is left to do but to close the connection. what says
// what the place takes, for who asks for something else.
//
// The server of net/http would do as well, and take a fifth of a dial's time for what it can do beside: see docs/decisions/0024.
func Read(conn net.Conn, early []byte, what string) (*Request, error) {
	limited := &io.LimitedReader{R: conn, N: maxHeader - int64(len(early))}
	br := readers.Get().(*bufio.Reader)
	defer readers.Put(br)
	defer br.Reset(nil)
	if len(early) > 0 {
		br.Reset(io.MultiReader(bytes.NewReader(early), limited))
	} else {
		br.Reset(limited)
	}
	req, err := http.ReadRequest(br)
	r := &Request{conn: conn}
	switch {
	case err != nil && limited.N <= 0:
		return nil, r.reject(http.StatusRequestHeaderFieldsTooLarge, "", errors.New("the request's headers are too long"))
	case lost(err):
		return nil, err // there is nobody to answer
	case err != nil:
		return nil, r.reject(http.StatusBadRequest, "", err)
	case req.ProtoMajor != 1:
		return nil, r.reject(http.StatusHTTPVersionNotSupported, "", fmt.Errorf("%s is not spoken here", cut(req.Proto)))
	case req.Method != http.MethodConnect:
		return nil, r.reject(http.StatusMethodNotAllowed, "Allow: CONNECT\r\n", fmt.Errorf("%s, not %s", what, cut(req.Method)))
	}
	r.Target, r.Header = req.Host, req.Header
	if n := br.Buffered(); n > 0 {
		ahead, _ := br.Peek(n)
		r.early = bytes.Clone(ahead)
	}
	return r, nil
}

// lost tells an error of the connection from one of what came by it, of which some are a net.Error too.
func lost(err error) bool {
	if _, is := errors.AsType[*net.OpError](err); is || errors.Is(err, io.EOF) {
		return true
	}
	timeout, is := errors.AsType[net.Error](err)
	return is && timeout.Timeout()
}

func cut(s string) string { return s[:min(len(s), 20)] }

// Watch returns a context that ends with ctx, and when the client hangs up before it has its answer. A client that says more before
// that is not watched. The request must be answered.
func (r *Request) Watch(ctx context.Context) context.Context {
	ctx, r.cancel = context.WithCancel(ctx)
	if len(r.early) > 0 {
		return ctx
	}
	r.looked = make(chan struct{})
	r.watching = time.AfterFunc(watchAfter, r.look) // most dials are over by then
	return ctx
}

func (r *Request) look() {
	defer close(r.looked)
	var b [1]byte
	n, err := r.conn.Read(b[:])
	r.early = append(r.early, b[:n]...)
	if err != nil {
		r.cancel()
	}
}

// answered ends the watch.
func (r *Request) answered() {
	if r.watching != nil && !r.watching.Stop() {
		_ = r.conn.SetReadDeadline(time.Unix(1, 0)) // has look return
		<-r.looked
		_ = r.conn.SetReadDeadline(time.Time{})
	}
	if r.cancel != nil {
		r.cancel()
	}
}

// Accept answers 200 and returns the connection, with what the client has said by then.
func (r *Request) Accept() (net.Conn, error) {
	r.answered()
	// Not a byte may follow the empty line before the API server speaks.
	if _, err := io.WriteString(r.conn, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return nil, err
	}
	if len(r.early) > 0 {
		return &replayConn{Conn: r.conn, early: r.early}, nil
	}
	return r.conn, nil
}

// Refuse answers with reason, which Reason made, in the status line too: kube-apiserver puts that line, and not the body, into the error that
// the person at kubectl reads. It ends what is written, and the caller closes the connection.
func (r *Request) Refuse(status int, reason string) {
	r.answered()
	r.answer(status, "", reason)
}

// reject answers what could not be taken for a request. It returns the error.
func (r *Request) reject(status int, header string, err error) error {
	r.answer(status, header, oneLine(err.Error()))
	return err
}

func (r *Request) answer(status int, header, reason string) {
	_ = r.conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	fmt.Fprintf(r.conn, "HTTP/1.1 %d %s\r\n%sContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, reason, header, len(reason), reason)
	if h, ok := r.conn.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
		_ = r.conn.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, r.conn, maxLinger)
	}
}
