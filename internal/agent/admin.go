package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// listenUnix listens on a socket that only its owner may connect to, at no moment another. A socket that a
// killed agent left is replaced, a living one's is not.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("admin socket %s: %w; set socket to a place that can be written to", path, err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("admin socket %s: another edge-agent answers there; stop it, or set socket", path)
	}
	// Made beside its place and moved there when its permissions are right.
	private, err := os.MkdirTemp(filepath.Dir(path), ".agent-")
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	defer os.RemoveAll(private)
	tmp := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // it would unlink the name that it no longer has
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("admin socket %s: %w", path, err)
	}
	return unixListener{l, path}, nil
}

type unixListener struct {
	net.Listener
	path string
}

func (l unixListener) Close() error {
	err := l.Listener.Close()
	if err == nil {
		_ = os.Remove(l.path)
	}
	return err
}

// serveAdmin serves the status and the health endpoints on the admin socket.
func (a *Agent) serveAdmin(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.Handle("/", a.health.Handler(a.registry))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a.Status())
	})
	return serveHTTP(ctx, l, mux, a.logger)
}

// serveHealth serves what may be shown to anyone on the machine.
func (a *Agent) serveHealth(ctx context.Context, l net.Listener) error {
	return serveHTTP(ctx, l, a.health.Handler(a.registry), a.logger)
}

func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, logger *slog.Logger) error {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { s.Close(); close(closed) })
	err := s.Serve(l)
	if !stop() {
		<-closed
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// FetchStatus asks the agent behind a socket for its status.
func FetchStatus(ctx context.Context, socket string) (*Status, error) {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return nil, err
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("ask the agent at %s: %w; run this as root", socket, err)
	case err != nil:
		return nil, fmt.Errorf("ask the agent at %s: %w; is it running (systemctl status edge-agent)?", socket, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the agent at %s: it answers %s", socket, res.Status)
	}
	s := &Status{}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(s); err != nil {
		return nil, fmt.Errorf("ask the agent at %s: %w", socket, err)
	}
	return s, nil
}
