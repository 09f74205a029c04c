package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// maxObject bounds what is read of an API server's answer, in bytes: a Node's 50 names of images are the most that comes.
const maxObject = 1 << 20

// apiServer is a tenant's API server, by way of the local API endpoint. Three requests of JSON are made there, for which
// client-go would be a twentieth of the agent (docs/decisions/0021-three-requests-without-client-go.md).
type apiServer struct {
	address string // of the local API endpoint
	token   string // sent as bearer; empty: none
	http    *http.Client
}

// newAPIServer takes the server's name and CA bundle (PEM), and a client certificate (PEM, with its key); nil: none. It is to be closed.
func (j *Joiner) newAPIServer(name string, ca, pair []byte) (*apiServer, error) {
	conf := &tls.Config{ServerName: name, RootCAs: x509.NewCertPool(), Time: j.clock.Now, MinVersion: tls.VersionTLS12}
	if !conf.RootCAs.AppendCertsFromPEM(ca) {
		return nil, errors.New("the CA bundle of the API server has no certificate")
	}
	if pair != nil {
		cert, err := tls.X509KeyPair(pair, pair)
		if err != nil {
			return nil, err
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return &apiServer{
		address: j.cfg.APIAddress,
		http: &http.Client{
			Transport:     &http.Transport{TLSClientConfig: conf, TLSHandshakeTimeout: 10 * time.Second},
			Timeout:       j.cfg.RequestTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // an API server sends nobody elsewhere
		},
	}, nil
}

// close frees its connections, which go through the tunnel.
func (a *apiServer) close() { a.http.CloseIdleConnections() }

// statusError is an answer of the API server's that is no success: metav1.Status, as far as it is one.
type statusError struct {
	Code    int    `json:"-"` // HTTP's
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Error implements error.
func (e *statusError) Error() string {
	if e.Message == "" {
		return fmt.Sprintf("%d %s", e.Code, http.StatusText(e.Code))
	}
	return fmt.Sprintf("%s (%d)", e.Message, e.Code)
}

// isStatus tells whether err is an answer with that code, and that reason unless it is empty.
func isStatus(err error, code int, reason string) bool {
	var s *statusError
	return errors.As(err, &s) && s.Code == code && (reason == "" || s.Reason == reason)
}

// do makes one request. in and out are objects, nil: none.
func (a *apiServer) do(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+a.address+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "edge-agent")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxObject+1))
	if err != nil {
		return fmt.Errorf("read the API server's answer: %w", err)
	}
	if len(text) > maxObject {
		return fmt.Errorf("the API server's answer is longer than %d bytes", maxObject)
	}
	return decodeAnswer(resp.StatusCode, text, out)
}

// maxReason bounds what is shown of an API server's message, in bytes.
const maxReason = 1 << 10

// decodeAnswer makes an object of an answer, or an error; out may be nil.
func decodeAnswer(code int, text []byte, out any) error {
	if code < 200 || code > 299 {
		status := &statusError{}
		_ = json.Unmarshal(text, status) // a proxy on the way answers otherwise: then the code has to do
		status.Code, status.Message = code, wire.Printable(status.Message[:min(len(status.Message), maxReason)])
		return status
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("the API server's answer: %w", err)
	}
	return nil
}
