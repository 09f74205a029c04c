package httpconnect

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const ask = "CONNECT edge-1:10250 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

// asked is a connection on which said was said, and its request.
func asked(t *testing.T, said string) (client net.Conn, r *Request) {
	t.Helper()
	client, server := net.Pipe()
	t.Cleanup(func() { client.Close(); server.Close() })
	go io.WriteString(client, said)
	r, err := Read(server, nil, "CONNECT only")
	if err != nil {
		t.Fatal(err)
	}
	return client, r
}

// TestWatchSeesTheClientGo: a client that hangs up takes its dial back, once that takes long.
func TestWatchSeesTheClientGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, r := asked(t, ask)
		ctx := r.Watch(t.Context())
		client.Close()
		time.Sleep(watchAfter / 2)
		if ctx.Err() != nil {
			t.Error("seen at once: then each dial is watched, also those that are over in no time")
		}
		time.Sleep(watchAfter)
		synctest.Wait()
		if ctx.Err() == nil {
			t.Error("the client is gone, and its dial goes on")
		}
		if _, err := r.Accept(); err == nil {
			t.Error("a client that is gone was told of success")
		}
	})
}

// TestWatchLosesNothing: what a client says while its dial is under way arrives behind it, whether that was watched already or not.
func TestWatchLosesNothing(t *testing.T) {
	for name, takes := range map[string]time.Duration{"quick": watchAfter / 2, "watched": watchAfter * 2} {
		for _, early := range []string{"", "early"} {
			t.Run(name+" "+early, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					client, r := asked(t, ask+early)
					ctx := r.Watch(t.Context())
					go func() {
						br := bufio.NewReader(client)
						resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
						if err != nil || resp.StatusCode != 200 {
							t.Errorf("answer: %v, %v", resp, err)
						}
						io.WriteString(client, " late")
						client.Close()
					}()
					sent := make(chan struct{})
					go func() {
						defer close(sent)
						io.WriteString(client, " impatient")
					}()
					time.Sleep(takes)
					if ctx.Err() != nil {
						t.Fatal("the dial was given up")
					}
					conn, err := r.Accept()
					if err != nil {
						t.Fatal(err)
					}
					got, err := io.ReadAll(conn)
					if err != nil || len(got) != len(early+" impatient late") || !strings.HasPrefix(string(got), early) {
						t.Errorf("read %q, %v", got, err)
					}
					<-sent
				})
			})
		}
	}
}

func TestWatchEndsWithTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, r := asked(t, ask)
		ctx := r.Watch(t.Context())
		time.Sleep(watchAfter * 2)
		said := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(client)
			said <- string(b)
		}()
		r.Refuse(http.StatusBadGateway, Reason("nobody there\r\nX: y", "0123456789abcdef0123"))
		r.conn.Close()
		if got := <-said; !strings.HasPrefix(got, "HTTP/1.1 502 nobody there  X: y (dial 0123456789abcdef)\r\nContent-Type") {
			t.Errorf("answer %q", got)
		}
		if context.Cause(ctx) == nil {
			t.Error("the context is left behind")
		}
	})
}

// kept is a connection whose input is given and whose output is kept.
type kept struct {
	net.Conn // nil: nothing else is called
	in       io.Reader
	out      bytes.Buffer
}

func (c *kept) Read(p []byte) (int, error)       { return c.in.Read(p) }
func (c *kept) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *kept) SetReadDeadline(time.Time) error  { return nil }
func (c *kept) SetWriteDeadline(time.Time) error { return nil }

func TestReadRejects(t *testing.T) {
	for name, tc := range map[string]struct{ said, want string }{
		"another method":  {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 405 CONNECT only, not GET\r\nAllow: CONNECT\r\n"},
		"another version": {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 505 "},
		"no HTTP":         {"SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 400 malformed HTTP request"},
		"cut short":       {"CONNECT edge-1:10250 HTTP/1.1\r\nHo", "HTTP/1.1 400 "},
		"no port":         {"CONNECT edge-1:https HTTP/1.1\r\n\r\n", "HTTP/1.1 400 parse"},
		"a zone":          {"CONNECT [fe80::1%eth0]:10250 HTTP/1.1\r\n\r\n", "HTTP/1.1 400 parse"},
		"no text":         {"CONNECT a\x00:1 HTTP/1.1\r\n\r\n", "HTTP/1.1 400 parse"},
		"too long":        {"CONNECT edge-1:10250 HTTP/1.1\r\nHost: " + strings.Repeat("x", maxHeader), "HTTP/1.1 431 "},
		"nothing":         {"", ""},
	} {
		c := &kept{in: strings.NewReader(tc.said)}
		r, err := Read(c, nil, "CONNECT only")
		if got := c.out.String(); err == nil || !strings.HasPrefix(got, tc.want) || (tc.want == "") != (got == "") {
			t.Errorf("%s: %v, %v, answered %q; want %q", name, r, err, got, tc.want)
		}
	}
}

// FuzzRead: whatever comes, in two parts of which one was read before, is a CONNECT request or is answered with one that is an answer; and what
// follows the request is not lost.
func FuzzRead(f *testing.F) {
	for _, s := range []string{
		ask, ask + "early", "CONNECT [::1]:1 HTTP/1.0\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\n",
		"CONNECT a:1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "CONNECT a\x00:1 HTTP/1.1\r\n\r\n", "CONNECT http://a:1/ HTTP/1.1\r\n\r\n",
	} {
		f.Add([]byte(s), 4)
	}
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		cut = max(0, min(cut, len(b), maxHeader))
		c := &kept{in: bytes.NewReader(b[cut:])}
		r, err := Read(c, b[:cut], "CONNECT only")
		if err != nil {
			head, body, ok := strings.Cut(c.out.String(), "\r\n\r\n")
			if len(b) > 0 && (!ok || !strings.HasPrefix(head, "HTTP/1.1 ") || strings.Count(head, "\n") > 4 || strings.ContainsAny(body, "\r\n")) {
				t.Fatalf("%q: answered %q", b, c.out.String())
			}
			return
		}
		conn, err := r.Accept()
		if err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(conn)
		if err != nil || !bytes.HasPrefix(b, []byte("CONNECT ")) || len(rest) > 0 && !bytes.HasSuffix(b, rest) {
			t.Fatalf("%q: %q, and then %q, %v", b, r.Target, rest, err)
		}
		if i := bytes.Index(b, []byte("\r\n\r\n")); i >= 0 && len(rest) < len(b)-i-4 {
			t.Fatalf("%q: only %q follows", b, rest)
		}
	})
}
