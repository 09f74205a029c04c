package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/mooring-edge/mooring/internal/enrollapi"
)

// client speaks the enrolment protocol: one request, one answer, one connection.
type client struct {
	endpoint string
	proxy    func(*url.URL) (*url.URL, error) // nil: none
	tls      *tls.Config
	timeout  time.Duration
	clock    *Clock // learns the time from each answer
}

// post sends in and decodes the answer into out. A refusal is an *enrollapi.Error. Nothing is sent
// before the server has been verified, which the TLS configuration does in the handshake. The result is the
// connection that the answer came over.
func (c client) post(ctx context.Context, path string, in, out any) (*tls.ConnectionState, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	if len(body) > enrollapi.MaxBody {
		return nil, fmt.Errorf("ask %s: the request is %d bytes long, at most %d are allowed", c.endpoint, len(body), enrollapi.MaxBody)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	conf := c.tls.Clone()
	conf.NextProtos = []string{enrollapi.ALPN}
	if host, _, err := net.SplitHostPort(c.endpoint); err == nil {
		conf.ServerName = host
	}
	transport := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10}
	if c.proxy != nil {
		transport.Proxy = func(r *http.Request) (*url.URL, error) { return c.proxy(r.URL) }
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.endpoint+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	// Redirects are not followed: the token is for the server that was verified.
	res, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("ask broker %s: %w", c.endpoint, err)
	}
	defer res.Body.Close()
	// Whoever answers has been verified: its word on the time, in whatever answer, is as good as any.
	if said, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		c.clock.learnSaid(said, res.TLS)
	}
	answer, err := io.ReadAll(io.LimitReader(res.Body, enrollapi.MaxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("ask broker %s: read its answer: %w", c.endpoint, err)
	}
	if len(answer) > enrollapi.MaxAnswer {
		return nil, fmt.Errorf("ask broker %s: its answer is longer than %d bytes", c.endpoint, enrollapi.MaxAnswer)
	}
	if res.StatusCode != http.StatusOK {
		return nil, refusal(c.endpoint, res.StatusCode, answer)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return nil, fmt.Errorf("ask broker %s: its answer can't be read: %w", c.endpoint, err)
	}
	return res.TLS, nil
}

// refusal turns an answer that is not 200 into the typed error that it holds.
func refusal(endpoint string, status int, answer []byte) error {
	var e enrollapi.Error
	if err := json.Unmarshal(answer, &e); err != nil || e.Code == "" {
		return fmt.Errorf("ask broker %s: it answers HTTP status %d without saying why", endpoint, status)
	}
	// It goes into logs, terminals and a status line.
	e.Message = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, e.Message)
	if len(e.Message) > 1024 {
		e.Message = strings.ToValidUTF8(e.Message[:1024], "")
	}
	return &e
}

// refused tells whether err is an answer that trying again soon won't change.
func refused(err error) bool {
	var e *enrollapi.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case enrollapi.CodeRefused, enrollapi.CodeNameTaken, enrollapi.CodeBadRequest:
		return true
	}
	return false // unknown codes of a newer broker count as passing
}
