package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/processors"
)

// TestServeFollows: a broker with little to do runs on one processor, and its metrics say so; it has all once it has ended.
func TestServeFollows(t *testing.T) {
	if processors.Named() || runtime.GOMAXPROCS(0) == 1 {
		t.Skip("one processor, or GOMAXPROCS in the environment")
	}
	all := runtime.GOMAXPROCS(0)
	dir := t.TempDir()
	cfg := config.DefaultBroker()
	cfg.DataDir, cfg.AdminSocket = filepath.Join(dir, "data"), filepath.Join(dir, "broker.sock")
	var held []net.Listener
	for _, addr := range []*string{&cfg.Front.Listen, &cfg.Egress.Listen, &cfg.HealthAddress} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, l) // until all have theirs
		*addr = l.Addr().String()
	}
	for _, l := range held {
		l.Close()
	}
	cfg.Front.PublicEndpoint = cfg.Front.Listen
	text, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "broker.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan string, 1)
	go func() {
		var out bytes.Buffer
		code := run(ctx, []string{"serve", "--config", path}, nil, io.Discard, &out)
		ended <- fmt.Sprintf("exit code %d: %s", code, out.String())
	}()
	says := regexp.MustCompile(`(?m)^go_sched_gomaxprocs_threads (\S+)$`)
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for late := time.After(time.Minute); ; {
		if resp, err := http.Get("http://" + cfg.HealthAddress + "/metrics"); err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			m := says.FindSubmatch(body)
			if m == nil {
				t.Fatalf("no go_sched_gomaxprocs_threads in:\n%s", body)
			}
			if n, err := strconv.ParseFloat(string(m[1]), 64); err == nil && n == 1 {
				break
			}
		}
		select {
		case <-look.C:
		case why := <-ended:
			t.Fatal(why)
		case <-late:
			t.Fatal("it is not on one processor")
		}
	}
	stop()
	if why := <-ended; !strings.HasPrefix(why, "exit code 0:") {
		t.Error(why)
	}
	if n := runtime.GOMAXPROCS(0); n != all {
		t.Errorf("it ended on %d processors, of %d", n, all)
	}
}
