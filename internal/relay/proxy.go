package relay

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
)

// Proxy is an HTTP proxy that knows CONNECT, and as much of faults as its fields say. Set them before Serve.
type Proxy struct {
	// User is the "name:password" that is wanted; empty: anybody may pass.
	User string
	// Answer is what each request is answered with, as it is, before the connection is closed; empty: see Lead.
	Answer string
	// Mute takes requests and says nothing.
	Mute bool
	// Lead turns the host:port that is asked for into the one that is dialled. nil: it is the same.
	Lead func(target string) string

	mu    sync.Mutex // guards the following
	asked []string
	open  []io.Closer
	over  bool
	wg    sync.WaitGroup
}

// Serve takes connections of l until Close; it returns at once.
func (p *Proxy) Serve(l net.Listener) {
	p.keep(l)
	p.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.keep(c)
			p.wg.Go(func() { p.serve(c) })
		}
	})
}

// keep has Close close c too.
func (p *Proxy) keep(c io.Closer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		_ = c.Close()
		return
	}
	p.open = append(p.open, c)
}

func (p *Proxy) serve(c net.Conn) {
	defer c.Close()
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, req.Method+" "+req.RequestURI)
	p.mu.Unlock()
	req.Header.Set("Authorization", req.Header.Get("Proxy-Authorization"))
	name, password, _ := req.BasicAuth()
	switch {
	case p.Mute:
		_, _ = io.Copy(io.Discard, c)
	case p.Answer != "":
		_, _ = io.WriteString(c, p.Answer)
	case p.User != "" && name+":"+password != p.User:
		_, _ = io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n")
	case req.Method != http.MethodConnect:
		_, _ = io.WriteString(c, "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
	default:
		p.connect(c, req.RequestURI)
	}
}

func (p *Proxy) connect(c net.Conn, target string) {
	if p.Lead != nil {
		target = p.Lead(target)
	}
	far, err := net.Dial("tcp", target)
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return
	}
	defer far.Close()
	p.keep(far)
	_, _ = io.WriteString(c, "HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n")
	p.wg.Go(func() { // as many proxies do: the end of one direction is the end of both
		_, _ = io.Copy(far, c)
		_ = far.Close()
	})
	_, _ = io.Copy(c, far)
}

// Asked returns the first lines of the requests so far: method and target.
func (p *Proxy) Asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

// Close ends the proxy with all that goes through it, and returns when nothing of it runs any more.
func (p *Proxy) Close() {
	p.mu.Lock()
	p.over = true
	for _, c := range p.open {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}
