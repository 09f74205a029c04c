package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/egressproxy"
	"github.com/mooring-edge/mooring/internal/processors"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// defaultProxySocket is where API servers look for the sidecar, unless it is said otherwise.
const defaultProxySocket = "/run/mooring/egress-proxy.sock"

func newEgressProxy() *cobra.Command {
	var cfg egressproxy.Config
	var transport string
	log := config.DefaultBroker().Log
	c := &cobra.Command{
		Use:   "egress-proxy --dir DIR",
		Short: "Run beside an API server and reach its nodes through the broker",
		Long: `Run beside a tenant's API server, as a sidecar, until it is told to stop (SIGTERM, SIGINT). On one unix socket it
takes both what kube-apiserver's egress selector speaks there: konnectivity's gRPC, and HTTP CONNECT. It keeps one session to the
broker, so that a dial costs no handshake.

DIR holds what ` + "`broker egress issue`" + ` writes, or a Secret with the same keys, mounted:

  client.crt  client.key  ca.crt  broker (one line: host:port of the broker's public port)

Files that change are taken without a restart, and connections that are open go on.`,
		Example: `  broker egress issue --tenant acme --mode sidecar-grpc --out /etc/mooring/egress
  broker egress-proxy --dir /etc/mooring/egress`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			switch cfg.Transport = tunnel.Transport(transport); cfg.Transport {
			case tunnel.TransportAuto, tunnel.TransportQUIC, tunnel.TransportTCP:
			default:
				return usageError{fmt.Errorf("--transport %q: want auto, quic or tcp", transport)}
			}
			switch log.Level {
			case "debug", "info", "warn", "error":
			default:
				return usageError{fmt.Errorf("--log-level %q: want debug, info, warn or error", log.Level)}
			}
			if log.Format != "text" && log.Format != "json" {
				return usageError{fmt.Errorf("--log-format %q: want text or json", log.Format)}
			}
			cfg.Logger = newLogger(c, log)
			processors.One() // docs/decisions/0023
			return egressproxy.New(cfg).Run(c.Context())
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "dir", "", "directory of the certificate and the broker's address (required)")
	f.StringVar(&cfg.Socket, "socket", defaultProxySocket, "unix socket to serve the API server on, mode 0600")
	f.StringVar(&transport, "transport", string(tunnel.TransportTCP), "tcp, quic, or auto: QUIC, and TCP where that does not pass")
	f.StringVar(&cfg.HealthAddress, "health-address", "", "where to serve /livez, /readyz and /metrics, as 127.0.0.1:9642 (default: nowhere)")
	f.StringVar(&log.Level, "log-level", log.Level, "debug, info, warn or error")
	f.StringVar(&log.Format, "log-format", log.Format, "text or json")
	c.MarkFlagRequired("dir")
	c.MarkFlagDirname("dir")
	return c
}
