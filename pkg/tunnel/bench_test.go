package tunnel

import (
	"context"
	"io"
	"sync"
	"testing"

	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// BenchmarkThroughput writes on one stream, or eight, and reads on the other side.
func BenchmarkThroughput(b *testing.B) {
	for _, tr := range []Transport{TransportQUIC, TransportTCP} {
		for _, n := range []int{1, 8} {
			b.Run(string(tr)+"/streams="+string(rune('0'+n)), func(b *testing.B) {
				p := newPair(b, tr, false, Config{})
				p.handle(func(_ context.Context, _ *Session, r *Request) {
					st, err := r.Accept()
					if err != nil {
						return
					}
					defer st.Close()
					buf := make([]byte, 64<<10)
					_, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{st}, buf)
				})
				buf := make([]byte, 64<<10)
				b.SetBytes(int64(len(buf)))
				b.ReportAllocs()
				var streams []*Stream
				for range n {
					streams = append(streams, p.open(b))
				}
				b.ResetTimer()
				var wg sync.WaitGroup
				for i, st := range streams {
					wg.Go(func() {
						for range b.N/n + min(max(b.N%n-i, 0), 1) {
							if _, err := st.Write(buf); err != nil {
								b.Error(err)
								return
							}
						}
						_ = st.CloseWrite()
						_, _ = io.Copy(io.Discard, struct{ io.Reader }{st})
						_ = st.Close()
					})
				}
				wg.Wait()
			})
		}
	}
}

// BenchmarkOpen opens a stream, has it accepted, and closes it.
func BenchmarkOpen(b *testing.B) {
	for _, tr := range []Transport{TransportQUIC, TransportTCP} {
		b.Run(string(tr), func(b *testing.B) {
			p := newPair(b, tr, false, Config{})
			b.ReportAllocs()
			for b.Loop() {
				st, err := p.opener.Open(b.Context(), wire.KindDial, "edge-1:10250")
				if err != nil {
					b.Fatal(err)
				}
				_ = st.CloseWrite()
				_, _ = io.Copy(io.Discard, struct{ io.Reader }{st})
				_ = st.Close()
			}
		})
	}
}

// BenchmarkRoundTrip sends 64 bytes and waits for their echo.
func BenchmarkRoundTrip(b *testing.B) {
	for _, tr := range []Transport{TransportQUIC, TransportTCP} {
		b.Run(string(tr), func(b *testing.B) {
			p := newPair(b, tr, false, Config{})
			st := p.open(b)
			buf := make([]byte, 64)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := st.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(st, buf); err != nil {
					b.Fatal(err)
				}
			}
			_ = st.Close()
		})
	}
}
