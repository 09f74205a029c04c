package egressproxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	kclient "sigs.k8s.io/apiserver-network-proxy/konnectivity-client/pkg/client"
)

func (f *fixture) dialOption() grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", f.socket)
	})
}

// grpcTunnel is what kube-apiserver makes for each dial (egressselector.udsGRPCConnector).
func (f *fixture) grpcTunnel(t *testing.T) kclient.Tunnel {
	t.Helper()
	//lint:ignore SA1019 kube-apiserver's own options
	options := []grpc.DialOption{f.dialOption(), grpc.WithBlock(), grpc.WithReturnConnectionError(), grpc.WithTimeout(limit), grpc.WithTransportCredentials(insecure.NewCredentials())}
	tun, err := kclient.CreateSingleUseGrpcTunnel(context.TODO(), "passthrough:///"+f.socket, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { within(t, tun.Done(), "the client's tunnel to end") })
	return tun
}

func (f *fixture) grpcDial(t *testing.T, target string) (net.Conn, error) {
	t.Helper()
	return f.grpcTunnel(t).DialContext(t.Context(), "tcp", target)
}

// closeClient closes c, and says whether the library has seen CLOSE_RSP. It ends its tunnel once it has, and its Close waits for either (v0.37, conn.go): who is slow to get
// there is told of one of both by chance. One who never sees it is told of the end each time.
func closeClient(t *testing.T, c net.Conn) (answered bool) {
	t.Helper()
	err := c.Close()
	if err != nil && err.Error() != "tunnel closed" {
		t.Errorf("close: %v", err)
	}
	return err == nil
}

// TestKonnectivityClient: the library that is in kube-apiserver dials, talks, and closes from either side.
func TestKonnectivityClient(t *testing.T) {
	f := start(t)
	answered := false
	for try := 0; try < 10 && !answered; try++ {
		c, err := f.grpcDial(t, "edge-1:10250")
		if err != nil {
			t.Fatal(err)
		}
		node := f.node(t)
		io.WriteString(c, "hello")
		io.WriteString(c, " there")
		if _, err := io.ReadFull(node, make([]byte, 11)); err != nil {
			t.Fatal(err)
		}
		io.WriteString(node, "answer")
		if _, err := io.ReadFull(c, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		answered = closeClient(t, c)
		wantEnd(t, node, "")
	}
	if !answered {
		t.Error("no close was answered")
	}

	c, err := f.grpcDial(t, "edge-1:10250")
	if err != nil {
		t.Fatal(err)
	}
	node := f.node(t)
	io.WriteString(node, "the last words")
	node.Close()
	if got, err := io.ReadAll(c); err != nil || string(got) != "the last words" {
		t.Errorf("read %q, %v", got, err)
	}
	c.Close()

	_, err = f.grpcDial(t, "absent:1")
	if err == nil || !regexp.MustCompile(`^not found: no connected node has the name or address "absent" \(dial [0-9a-f]{16}\)$`).MatchString(err.Error()) {
		t.Errorf("a refused dial: %v", err)
	}
	if failed, _ := kclient.GetDialFailureReason(err); !failed {
		t.Errorf("%v is not a failed dial to the client", err)
	}
}

// TestKonnectivityBulk: much data arrives whole each way, with both at once.
func TestKonnectivityBulk(t *testing.T) {
	f := start(t)
	c, err := f.grpcDial(t, "echo:1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sent := make([]byte, 8<<20)
	_, _ = rand.Read(sent)
	var writing sync.WaitGroup
	writing.Go(func() {
		for rest := sent; len(rest) > 0; {
			n := min(len(rest), 100_000)
			if _, err := c.Write(rest[:n]); err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
	})
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("what came back differs: %v", err)
	}
	writing.Wait()
}

// TestKonnectivityReusableTunnel: many dials on one gRPC connection, each on a stream of its own (the client of v0.37 on).
func TestKonnectivityReusableTunnel(t *testing.T) {
	f := start(t)
	tun, err := kclient.CreateGRPCTunnel(t.Context(), "passthrough:///"+f.socket, f.dialOption(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var answered atomic.Int64
	for i := range 50 {
		all.Go(func() {
			c, err := tun.DialContext(t.Context(), "tcp", "echo:1")
			if err != nil {
				t.Error(err)
				return
			}
			words := fmt.Sprintf("this is %d", i)
			io.WriteString(c, words)
			got := make([]byte, len(words))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != words {
				t.Errorf("%q came back for %q: %v", got, words, err)
			}
			if closeClient(t, c) {
				answered.Add(1)
			}
		})
	}
	all.Wait()
	if answered.Load() == 0 {
		t.Error("no close was answered")
	}
	if err := tun.Close(); err != nil {
		t.Error(err)
	}
}

// TestKonnectivityDialGivenUp: a client that gives up its dial (DIAL_CLS, and the connection's end) takes it back at the broker.
func TestKonnectivityDialGivenUp(t *testing.T) {
	f := start(t)
	tun := f.grpcTunnel(t)
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := tun.DialContext(ctx, "tcp", "hold:1")
		failed <- err
	}()
	held := <-f.held
	cancel()
	if err := <-failed; err == nil {
		t.Error("the dial succeeded")
	}
	within(t, held.Done(), "the dial to be given up")
}

// TestSidecarStopsWithConnections: what is open is cut on both sides, in a time that nobody has to wait for.
func TestSidecarStopsWithConnections(t *testing.T) {
	f := start(t)
	c, err := f.grpcDial(t, "edge-1:10250")
	if err != nil {
		t.Fatal(err)
	}
	node := f.node(t)
	h, br, _ := f.connect(t, "edge-2:10250")
	second := f.node(t)
	go func() { _, _ = f.grpcDial(t, "hold:1") }()
	<-f.held
	wantEcho2(t, c, node)
	wantEcho2(t, h, second)
	began := time.Now()
	f.stop()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping took %s", took)
	}
	if n, _ := c.Read(make([]byte, 1)); n != 0 {
		t.Error("something came by gRPC")
	}
	if n, _ := br.Read(make([]byte, 1)); n != 0 {
		t.Error("something came by CONNECT")
	}
	for _, n := range []io.Reader{node, second} {
		if _, err := io.ReadAll(n); err == nil {
			t.Error("what was cut looks whole to the node")
		}
	}
	if strings.Contains(f.logs.String(), "level=ERROR") {
		t.Errorf("errors in the log:\n%s", f.logs)
	}
}

// wantEcho2 sends a word from one end to the other.
func wantEcho2(t *testing.T, w io.Writer, r io.Reader) {
	t.Helper()
	io.WriteString(w, "word")
	if _, err := io.ReadFull(r, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
}
