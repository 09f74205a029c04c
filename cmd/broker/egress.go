package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/durable"
)

func newEgress(client func() *admin.Client) *cobra.Command {
	return group("egress", "Connect API servers to the broker", newEgressIssue(client), newEgressSecret(client))
}

// The ways in which an API server reaches the broker.
const (
	modeConnect     = "http-connect"
	modeSidecarHTTP = "sidecar-http"
	modeSidecarGRPC = "sidecar-grpc"
)

var egressModes = []string{modeConnect, modeSidecarHTTP, modeSidecarGRPC}

// egressFiles is what an API server is connected by, on disk.
type egressFiles struct {
	dir, mode, socket, broker string
}

func newEgressIssue(client func() *admin.Client) *cobra.Command {
	var tenant string
	var files egressFiles
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "issue --tenant NAME --out DIR",
		Short: "Issue an API server's client certificate and its egress configuration",
		Long: `Issue a client certificate by which a tenant's API servers reach their nodes, and write it to
DIR with a ready EgressSelectorConfiguration and the broker's address:

  client.crt  client.key  ca.crt  broker  egress-selector.yaml

Start kube-apiserver with --egress-selector-config-file=DIR/egress-selector.yaml and
--kubelet-preferred-address-types=Hostname,InternalIP. It reads the files only at its start.

With --mode http-connect it calls the broker's egress port itself, over mTLS, and reads certificate and key only at its
start. With sidecar-grpc or sidecar-http it calls ` + "`broker egress-proxy --dir DIR`" + ` beside it, on a unix socket:
certificates are then renewed without its restart, by issuing them again to the same DIR.`,
		Example: `  broker egress issue --tenant acme --out /etc/kubernetes/mooring
  broker egress issue --tenant acme --out /etc/kubernetes/mooring --mode sidecar-http`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if files.dir, err = filepath.Abs(files.dir); err != nil {
				return usageError{err}
			}
			if !slices.Contains(egressModes, files.mode) {
				return usageError{fmt.Errorf("--mode %q: want one of %s", files.mode, strings.Join(egressModes, ", "))}
			}
			if err := checkBroker(files.broker); err != nil {
				return err
			}
			r, err := client().IssueEgress(c.Context(), admin.EgressRequest{Tenant: tenant, TTL: config.Duration{Duration: ttl}})
			if err != nil {
				return err
			}
			if err := files.write(r); err != nil {
				return err
			}
			files.explain(c.OutOrStdout(), r)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&tenant, "tenant", "", "tenant whose API servers will use it (required)")
	f.StringVar(&files.dir, "out", "", "directory to write to; made if absent (required)")
	f.DurationVar(&ttl, "ttl", 365*24*time.Hour, "life of the certificate")
	f.StringVar(&files.mode, "mode", modeConnect, "how the API server reaches the broker: "+strings.Join(egressModes, ", "))
	f.StringVar(&files.socket, "proxy-socket", defaultProxySocket, "socket of `broker egress-proxy`, for the modes with a sidecar")
	f.StringVar(&files.broker, "broker", "", "host:port by which a sidecar reaches the broker (default: front.publicEndpoint)")
	c.MarkFlagRequired("tenant")
	c.MarkFlagRequired("out")
	c.MarkFlagDirname("out")
	c.RegisterFlagCompletionFunc("tenant", completeTenants(client))
	c.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions(egressModes, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// checkBroker looks at what --broker says; empty is the broker's own word.
func checkBroker(address string) error {
	if address == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return usageError{fmt.Errorf("--broker: %w; want host:port", err)}
	}
	return nil
}

func (e egressFiles) write(r admin.EgressResponse) error {
	selector, err := e.selector(r.Endpoint)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(e.dir, 0o755); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
		perm os.FileMode
	}{
		{"client.key", []byte(r.Key), 0o600},
		{"client.crt", []byte(r.Certificate), 0o644},
		{"ca.crt", []byte(r.CA), 0o644},
		{"broker", []byte(cmp.Or(e.broker, r.Broker) + "\n"), 0o644},
		{"egress-selector.yaml", selector, 0o644},
	} {
		if err := durable.WriteFile(filepath.Join(e.dir, f.name), f.data, f.perm); err != nil {
			return err
		}
	}
	return nil
}

// explain says what was written, and what is next.
func (e egressFiles) explain(w io.Writer, r admin.EgressResponse) {
	fmt.Fprintf(w, "wrote client.crt, client.key, ca.crt, broker and egress-selector.yaml to %s (valid until %s)\n",
		e.dir, r.NotAfter.UTC().Format(time.RFC3339))
	selector := filepath.Join(e.dir, "egress-selector.yaml")
	if e.mode == modeConnect {
		fmt.Fprintf(w, "next: start kube-apiserver with --egress-selector-config-file=%s\n", selector)
		return
	}
	fmt.Fprintf(w, "next: run `broker egress-proxy --dir %s --socket %s` and beside it kube-apiserver with --egress-selector-config-file=%s; "+
		"a sidecar that runs takes the new files by itself\n", e.dir, e.socket, selector)
}

// selector is an apiserver.k8s.io/v1beta1 EgressSelectorConfiguration. Its Go types live in
// k8s.io/apiserver, whose weight these few keys are not worth; e2e feeds it to the real API server.
func (e egressFiles) selector(endpoint string) ([]byte, error) {
	type object = map[string]any
	connection := object{"proxyProtocol": "HTTPConnect", "transport": object{"uds": object{"udsName": e.socket}}}
	switch e.mode {
	case modeConnect:
		connection["transport"] = object{"tcp": object{
			"url": endpoint,
			"tlsConfig": object{
				"caBundle":   filepath.Join(e.dir, "ca.crt"),
				"clientKey":  filepath.Join(e.dir, "client.key"),
				"clientCert": filepath.Join(e.dir, "client.crt"),
			},
		}}
	case modeSidecarGRPC:
		connection["proxyProtocol"] = "GRPC"
	}
	return yaml.Marshal(object{
		"apiVersion":       "apiserver.k8s.io/v1beta1",
		"kind":             "EgressSelectorConfiguration",
		"egressSelections": []object{{"name": "cluster", "connection": connection}},
	})
}
