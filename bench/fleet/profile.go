package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"github.com/mooring-edge/mooring/bench/internal/shore"
	"github.com/mooring-edge/mooring/internal/broker"
	"github.com/mooring-edge/mooring/internal/config"
)

// pprofEnv has serveInProcess serve profiles at that address.
const pprofEnv = "MOORING_BENCH_PPROF"

// serveInProcess is a broker as `broker serve` runs it, in this binary, with net/http/pprof beside it.
func serveInProcess(ctx context.Context, path string) error {
	cfg, err := config.LoadBroker(path)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", os.Getenv(pprofEnv))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go srv.Serve(l)
	defer srv.Close()
	return broker.Run(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}

// takeProfiles puts a broker with pprof in the place of the one that runs, and saves its profiles when all nodes have
// come over and have been idle for a while.
func (m *measurement) takeProfiles(ctx context.Context, f *fleet) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ports, err := shore.FreePorts("127.0.0.1", 1)
	if err != nil {
		return err
	}
	address := net.JoinHostPort("127.0.0.1", ports[0])
	dir := filepath.Join(m.profile, string(m.transport))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	profiles := "http://" + address + "/debug/pprof/"
	os.Setenv(pprofEnv, address)
	defer os.Unsetenv(pprofEnv)

	m.say("all nodes to a broker with pprof")
	f.stop()
	if err := m.shore.Stop(); err != nil {
		return err
	}
	if err := m.shore.StartAs(ctx, self, "serve-in-process"); err != nil {
		return err
	}
	if err := m.connect(ctx, f); err != nil {
		return err
	}
	if err := sleep(ctx, m.idle); err != nil {
		return err
	}
	m.say("profiles to %s", dir)
	for name, path := range map[string]string{
		"heap.pb.gz":      "heap?gc=1",
		"goroutine.pb.gz": "goroutine",
		"goroutine.txt":   "goroutine?debug=1",
		"cpu-idle.pb.gz":  "profile?seconds=60",
	} {
		if err := save(ctx, filepath.Join(dir, name), profiles+path); err != nil {
			return err
		}
	}
	m.say("kill -9 of this broker, and a profile of what the return of all costs")
	m.shore.Kill()
	if err := m.shore.StartAs(ctx, self, "serve-in-process"); err != nil {
		return err
	}
	if err := save(ctx, filepath.Join(dir, "cpu-return.pb.gz"), profiles+"profile?seconds=30"); err != nil {
		return err
	}
	m.report.Profiles = dir
	return nil
}

func save(ctx context.Context, file, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, resp.Body); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
