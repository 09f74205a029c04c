package bidi

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/status"
)

// raw is a codec whose messages are bytes.
type raw struct{}

func (raw) Name() string                    { return "raw" }
func (raw) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = bytes.Clone(b); return nil }

func (s *server) grpc(t testing.TB) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("unix:"+s.path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}))) //nolint:staticcheck // the shorter way
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func call(t testing.TB, cc *grpc.ClientConn, ctx context.Context, path string, o ...grpc.CallOption) grpc.ClientStream {
	t.Helper()
	cs, err := cc.NewStream(ctx, &grpc.StreamDesc{StreamName: "Call", ServerStreams: true, ClientStreams: true}, path, o...)
	if err != nil {
		t.Fatal(err)
	}
	return cs
}

// TestMessagesComeBack: gRPC's own client, several streams at a time on one connection, messages of all sizes, and an end in the ordinary way.
func TestMessagesComeBack(t *testing.T) {
	s := serve(t, echo())
	cc := s.grpc(t)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			cs := call(t, cc, t.Context(), method)
			var sent [][]byte
			for _, n := range []int{0, 1, 5, 99, 0, 3000, 16<<10 - 5, 16 << 10, 64 << 10, 64<<10 + 100, 300_000, 1 << 20, 1, 0} {
				b := make([]byte, n)
				_, _ = rand.Read(b)
				sent = append(sent, b)
			}
			var sending sync.WaitGroup
			defer sending.Wait()
			sending.Go(func() {
				for round := range 3 {
					for j := range sent {
						b := sent[(j+i)%len(sent)]
						if err := cs.SendMsg(&b); err != nil {
							t.Errorf("round %d: %v", round, err)
							return
						}
					}
				}
				_ = cs.CloseSend()
			})
			for range 3 {
				for j := range sent {
					var got []byte
					if err := cs.RecvMsg(&got); err != nil {
						t.Error(err)
						return
					}
					if want := sent[(j+i)%len(sent)]; !bytes.Equal(got, want) {
						t.Errorf("%d bytes came for %d", len(got), len(want))
						return
					}
				}
			}
			var got []byte
			if err := cs.RecvMsg(&got); err != io.EOF {
				t.Errorf("%d bytes, %v; want an end", len(got), err)
			}
		})
	}
	all.Wait()
}

// TestStatuses: what a stream ends with is what gRPC's client reads.
func TestStatuses(t *testing.T) {
	s := serve(t, func(h *handler, m *Message) error {
		switch string(m.Bytes()) {
		case "status":
			return status.Error(codes.FailedPrecondition, "100 % of it:\nnaïve")
		case "begun":
			_ = h.s.Send([]byte("be"), []byte("gun"))
			return errors.New("no status at all")
		}
		return nil
	})
	cc := s.grpc(t)
	for _, c := range []struct {
		name, path, send string
		options          []grpc.CallOption
		code             codes.Code
		text             string
	}{
		{name: "status", send: "status", code: codes.FailedPrecondition, text: "100 % of it:\nnaïve"},
		{name: "behind a message", send: "begun", code: codes.Unknown, text: "no status at all"},
		{name: "method", path: "/other/Call", send: "x", code: codes.Unimplemented, text: "/other/Call"},
		{name: "large", send: strings.Repeat("x", 1<<20+1), code: codes.ResourceExhausted, text: "1048577"},
		{name: "compressed", send: strings.Repeat("x", 1000), options: []grpc.CallOption{grpc.UseCompressor(gzip.Name)}, code: codes.Unimplemented, text: "compressed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := method
			if c.path != "" {
				path = c.path
			}
			cs := call(t, cc, t.Context(), path, c.options...)
			b := []byte(c.send)
			_ = cs.SendMsg(&b)
			var err error
			for err == nil {
				var got []byte
				err = cs.RecvMsg(&got)
			}
			if st := status.Convert(err); st.Code() != c.code || !strings.Contains(st.Message(), c.text) {
				t.Errorf("%v, want %v with %q", err, c.code, c.text)
			}
		})
	}
}

// TestHandlersEnd: however a client's stream ends, its handler is told, once, and the connection goes on for others.
func TestHandlersEnd(t *testing.T) {
	s := serve(t, echo())
	cc := s.grpc(t)
	for how, end := range map[string]func(grpc.ClientStream, func()){
		"closed":   func(cs grpc.ClientStream, _ func()) { _ = cs.CloseSend() },
		"canceled": func(_ grpc.ClientStream, cancel func()) { cancel() },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		cs := call(t, cc, ctx, method)
		b := []byte("x")
		_ = cs.SendMsg(&b)
		h := s.stream(t)
		end(cs, cancel)
		within(t, h.over, how)
		within(t, h.waits, how)
		cancel()
	}
	other := s.grpc(t)
	cs := call(t, other, t.Context(), method)
	b := []byte("x")
	_ = cs.SendMsg(&b)
	h := s.stream(t)
	other.Close()
	within(t, h.waits, "the connection's end")
}

// TestWindowsGrow: gRPC's client makes its window larger by what comes until its ping is answered; so it is answered while much is sent. Mechanism:
// writer.much and the frame behind a long write. Seen failing without both (the window stays at 64 KiB).
func TestWindowsGrow(t *testing.T) {
	most := make(chan int, 1)
	s := serve(t, func(h *handler, m *Message) error {
		h.work.Go(func() {
			b := make([]byte, 64<<10)
			most <- 0
			for h.s.Send(nil, b) == nil {
				h.s.c.mu.Lock()
				window := h.s.window
				h.s.c.mu.Unlock()
				most <- max(<-most, window)
			}
		})
		return nil
	}, func(c *Config) { c.aWhile = time.Hour })
	cs := call(t, s.grpc(t), t.Context(), method)
	var b []byte
	_ = cs.SendMsg(&b)
	for deadline := time.Now().Add(limit); ; {
		if err := cs.RecvMsg(&b); err != nil {
			t.Fatal(err)
		}
		w := <-most
		most <- w
		if w > 256<<10 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the client's window is never larger than %d bytes", w)
		}
	}
}

// BenchmarkEcho is a message there and back, through gRPC's client.
func BenchmarkEcho(b *testing.B) {
	for _, n := range []int{1, 4 << 10, 64 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := serve(b, echo())
			cs := call(b, s.grpc(b), b.Context(), method)
			m := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				if err := cs.SendMsg(&m); err != nil {
					b.Fatal(err)
				}
				if err := cs.RecvMsg(&m); err != nil {
					b.Fatal(err)
				}
			}
			_ = cs.CloseSend()
		})
	}
}
