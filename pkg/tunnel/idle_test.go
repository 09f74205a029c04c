package tunnel

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// agentsEnv tells the test's own binary to be agents: by itself, so that what the broker's end of a session costs can
// be told from the agent's.
const agentsEnv = "MOORING_TEST_AGENTS"

// fleet is what such agents are told.
type fleet struct {
	Addr      string
	Transport Transport
	N         int
	CA, Cert  []byte
	Key       []byte
}

// agents holds sessions until its standard input ends.
func agents(told string) {
	var f fleet
	check(json.Unmarshal([]byte(told), &f))
	key, err := x509.ParseECPrivateKey(f.Key)
	check(err)
	ca, err := x509.ParseCertificate(f.CA)
	check(err)
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	cfg := &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{{Certificate: [][]byte{f.Cert}, PrivateKey: key}}}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range f.N / 4 {
				d := &Dialer{Endpoint: f.Addr, TLS: cfg, Transport: f.Transport}
				_, err := d.Dial(context.Background()) // its sessions end with the process
				check(err)
			}
		})
	}
	wg.Wait()
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// BenchmarkIdleSession reports what the broker's end of an idle session holds: KiB of heap, of stacks, and of resident
// memory, and goroutines.
func BenchmarkIdleSession(b *testing.B) {
	for _, tr := range []Transport{TransportQUIC, TransportTCP} {
		b.Run(string(tr), func(b *testing.B) {
			const n = 1000
			brk := startBroker(b, AcceptorConfig{OnSession: func(_ context.Context, s *Session) { s.Admitted() }})
			before := costNow()
			defer startAgents(b, brk.addr, tr, n, brk.sessions)()
			for b.Loop() {
			}
			after := costNow()
			b.ReportMetric(float64(after.heap-before.heap)/n/1024, "KiB-heap")
			b.ReportMetric(float64(after.stack-before.stack)/n/1024, "KiB-stack")
			b.ReportMetric(float64(after.rss-before.rss)/n/1024, "KiB-RSS")
			b.ReportMetric(float64(after.goroutines-before.goroutines)/n, "goroutines")
		})
	}
}

// TestIdleSessionGoroutines: an idle session over TCP has four goroutines at each end, of which two are yamux's. Seen
// failing with a heartbeat that has one of its own.
func TestIdleSessionGoroutines(t *testing.T) { // not parallel: it counts the process's
	const n = 20
	b := startBroker(t, AcceptorConfig{})
	before := runtime.NumGoroutine()
	for range n {
		agent, brk := dialTo(t, b, b.addr, TransportTCP, Config{})
		waitFor(t, func() bool { return agent.Stats().RTT > 0 && brk.Stats().RTT > 0 }, "heartbeats")
	}
	most := before + 2*4*n + n/2 // and some of the broker's own
	waitFor(t, func() bool { return runtime.NumGoroutine() <= most }, fmt.Sprintf("%d sessions to have no more than 4 goroutines at each end", n))
}

// cost is what the process holds.
type cost struct {
	heap, stack, rss int64
	goroutines       int
}

func costNow() cost {
	for range 4 {
		debug.FreeOSMemory() // collects garbage, too, and a stack shrinks by half at each
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return cost{int64(m.HeapAlloc), int64(m.StackInuse), rss(), runtime.NumGoroutine()}
}

// rss is the process's resident memory in bytes; 0 where that is not known.
func rss() int64 {
	f, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	pages, err := strconv.ParseInt(strings.Fields(string(f))[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * int64(os.Getpagesize())
}

// startAgents returns once there are n sessions, of which each has seen a heartbeat.
func startAgents(b *testing.B, addr string, tr Transport, n int, sessions <-chan *Session) (stop func()) {
	b.Helper()
	key, err := x509.MarshalECPrivateKey(pki().agent.PrivateKey.(*ecdsa.PrivateKey))
	check(err)
	said, err := json.Marshal(fleet{addr, tr, n, pki().ca.Raw, pki().agent.Certificate[0], key})
	check(err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), agentsEnv+"="+string(said))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	check(err)
	check(cmd.Start())
	for range n {
		s := within(b, 30*time.Second, sessions, "an agent's session")
		waitFor(b, func() bool { return s.Stats().RTT > 0 }, "a heartbeat")
	}
	return func() {
		_ = in.Close()
		if err := cmd.Wait(); err != nil {
			b.Errorf("the agents: %v", err)
		}
	}
}
