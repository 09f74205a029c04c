package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mooring-edge/mooring/bench/internal/shore"
	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
)

// dialTimeout bounds one dial of the trickle; the broker's own bound is 20 s.
const dialTimeout = 25 * time.Second

// apiServer dials nodes as a kube-apiserver does: CONNECT over mTLS, with a certificate of `broker egress issue`.
type apiServer struct {
	address string
	tls     *tls.Config
}

func newAPIServer(ctx context.Context, s *shore.Shore) (*apiServer, error) {
	e, err := s.Client.IssueEgress(ctx, admin.EgressRequest{Tenant: shore.TenantName, TTL: config.Duration{Duration: 24 * time.Hour}})
	if err != nil {
		return nil, fmt.Errorf("issue the egress certificate: %w", err)
	}
	pair, err := tls.X509KeyPair([]byte(e.Certificate), []byte(e.Key))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(e.CA))
	return &apiServer{
		address: strings.TrimPrefix(e.Endpoint, "https://"),
		tls:     &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
	}, nil
}

// dial connects to a node's kubelet.
func (a *apiServer) dial(ctx context.Context, node string) (*tls.Conn, error) {
	d := tls.Dialer{Config: a.tls}
	c, err := d.DialContext(ctx, "tcp", a.address)
	if err != nil {
		return nil, err
	}
	conn := c.(*tls.Conn)
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := shore.Connect(conn, fmt.Sprintf("%s:%d", node, kubeletPort)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// echoed says a word to a node and hears it back.
func echoed(conn net.Conn) error {
	const word = "moored?"
	if err := conn.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, word); err != nil {
		return err
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if string(got) != word {
		return fmt.Errorf("the node answered %q to %q", got, word)
	}
	return nil
}

// failure puts what became of a dial in few words; empty is a dial that went well.
func failure(err error) string {
	var status *shore.StatusError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &status):
		return fmt.Sprintf("%d %s", status.Code, firstWords(status.Line))
	case errors.Is(err, syscall.ECONNREFUSED):
		return "broker not there"
	case errors.Is(err, context.DeadlineExceeded), isTimeout(err):
		return "timeout"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection cut"
	}
	return err.Error()
}

// firstWords are a status line's, without its code and the names in it.
func firstWords(line string) string {
	words := strings.Fields(line)[1:]
	return strings.Join(words[:min(3, len(words))], " ")
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// dialLog is what became of dials.
type dialLog struct {
	mu       sync.Mutex // guards the following
	took     []time.Duration
	failures map[string]int
}

func (l *dialLog) add(took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if why := failure(err); why != "" {
		if l.failures == nil {
			l.failures = map[string]int{}
		}
		l.failures[why]++
		return
	}
	l.took = append(l.took, took)
}

// trickle dials nodes at a steady rate.
type trickle struct {
	api   *apiServer
	nodes []*node
	rate  float64 // a second

	mu  sync.Mutex // guards the following
	log *dialLog   // of the dials that begin now; nil: none begin
}

// phase has the dials that begin from now on go into a log of their own.
func (t *trickle) phase(l *dialLog) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.log = l
}

// run dials until ctx ends, and returns when all dials have.
func (t *trickle) run(ctx context.Context) {
	if t.rate <= 0 {
		return
	}
	tick := time.NewTicker(time.Duration(float64(time.Second) / t.rate))
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		t.mu.Lock()
		log := t.log
		t.mu.Unlock()
		if log != nil {
			wg.Go(func() { t.once(log) })
		}
	}
}

// once makes one dial, which is over when the node has been heard through it.
func (t *trickle) once(log *dialLog) {
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	begin := time.Now()
	conn, err := t.api.dial(ctx, t.nodes[rand.IntN(len(t.nodes))].id.Node)
	took := time.Since(begin)
	if err == nil {
		err = echoed(conn)
		conn.Close()
	}
	log.add(took, err)
}

// quantile returns the value that the part q of the sorted ones does not exceed.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// latencies sums a log up.
func (l *dialLog) latencies() dialFigures {
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.Sort(l.took)
	f := dialFigures{Dials: len(l.took), P50: ms(quantile(l.took, .5)), P99: ms(quantile(l.took, .99)), Max: ms(quantile(l.took, 1)), Failures: l.failures}
	for _, n := range l.failures {
		f.Dials += n
		f.Failed += n
	}
	return f
}
