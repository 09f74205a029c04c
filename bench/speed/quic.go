package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/spf13/cobra"
)

// What is changed of the bare quic-go chain, one thing at a time, for the part of each to be seen. The names are of overQUIC's variants.
const (
	overQUIC1200    = overQUIC + "-1200"    // packets of 1200 bytes, as Mooring sends them, and no discovery of larger ones
	overQUICNoGSO   = overQUIC + "-no-gso"  // a system call for each packet
	overQUICBuffers = overQUIC + "-buffers" // sockets with what Linux gives to who does not ask for more
)

// defaultSocketBuffer is net.core.rmem_default of Linux, in bytes. The kernel doubles what is asked for.
const defaultSocketBuffer = 212992 / 2

var quicVariants = []struct{ over, name string }{
	{overQUIC, "bare quic-go"},
	{overQUIC1200, "packets of 1200 bytes"},
	{overQUICNoGSO, "no GSO"},
	{overQUICBuffers, "socket buffers of 208 KiB"},
}

func quicConfig(over string) *quic.Config {
	c := &quic.Config{KeepAlivePeriod: 10 * time.Second, MaxIncomingStreams: 1 << 12}
	if over == overQUIC1200 {
		c.InitialPacketSize, c.DisablePathMTUDiscovery = 1200, true
	}
	return c
}

// quicSocket is where a variant's packets go; settle is to be called once quic-go has made its own settings.
func quicSocket(over, listen string) (tr *quic.Transport, settle func() error, err error) {
	if over == overQUICNoGSO {
		if err := os.Setenv("QUIC_GO_DISABLE_GSO", "true"); err != nil {
			return nil, nil, err
		}
	}
	at, err := net.ResolveUDPAddr("udp", listen)
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.ListenUDP("udp", at)
	if err != nil {
		return nil, nil, err
	}
	settle = func() error {
		if over != overQUICBuffers {
			return nil
		}
		if err := conn.SetReadBuffer(defaultSocketBuffer); err != nil {
			return err
		}
		return conn.SetWriteBuffer(defaultSocketBuffer)
	}
	return &quic.Transport{Conn: conn}, settle, nil
}

// acceptQUIC waits for the far end.
func acceptQUIC(ctx context.Context, over, south string, conf *tls.Config) (*quic.Conn, error) {
	tr, settle, err := quicSocket(over, south)
	if err != nil {
		return nil, err
	}
	l, err := tr.Listen(conf, quicConfig(over))
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(os.Stderr, "waits")
	c, err := l.Accept(ctx)
	if err != nil {
		return nil, err
	}
	return c, settle()
}

// dialQUIC goes to the near end.
func dialQUIC(ctx context.Context, over, south string, conf *tls.Config) (*quic.Conn, error) {
	tr, settle, err := quicSocket(over, "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	to, err := net.ResolveUDPAddr("udp", south)
	if err != nil {
		return nil, err
	}
	c, err := tr.Dial(ctx, to, conf, quicConfig(over))
	if err != nil {
		return nil, err
	}
	return c, settle()
}

// quicChains are the limit and the variants.
func (b *bed) quicChains(say func(string, ...any)) (all []*chain, err error) {
	for _, v := range append([]struct{ over, name string }{{overLegs, limitName}}, quicVariants...) {
		say("starting %s", v.name)
		transport := "QUIC"
		if v.over == overLegs {
			transport = "TLS twice"
		}
		c, err := b.bare(v.name, v.over, transport)
		if err == nil {
			err = ready(b.ctx, c.dial)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func newQUIC() *cobra.Command {
	var o options
	c := &cobra.Command{
		Use:   "quic",
		Short: "Tell what packet size, GSO and socket buffers give quic-go",
		Long: `quic runs the load through chains that are stock quic-go and nothing else, each with one thing changed. How often packets are acknowledged is
not among them: quic-go has no setting for it.`,
		Example: `  go run ./speed quic --rounds 3`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return compare(c, o, func(b *bed, _ string, say func(string, ...any)) ([]*chain, error) { return b.quicChains(say) })
		},
	}
	o.flags(c)
	return c
}
