package main

import (
	"fmt"
	"os"
	"path/filepath"
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

func newEgressIssue(client func() *admin.Client) *cobra.Command {
	var tenant, dir string
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "issue --tenant NAME --out DIR",
		Short: "Issue an API server's client certificate and its egress configuration",
		Long: `Issue a client certificate by which a tenant's API servers reach their nodes, and write it to
DIR with a ready EgressSelectorConfiguration:

  client.crt  client.key  ca.crt  egress-selector.yaml

Start kube-apiserver with --egress-selector-config-file=DIR/egress-selector.yaml and
--kubelet-preferred-address-types=Hostname,InternalIP. It reads the files only at its start.`,
		Example: `  broker egress issue --tenant acme --out /etc/kubernetes/mooring`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			abs, err := filepath.Abs(dir)
			if err != nil {
				return usageError{err}
			}
			r, err := client().IssueEgress(c.Context(), admin.EgressRequest{Tenant: tenant, TTL: config.Duration{Duration: ttl}})
			if err != nil {
				return err
			}
			if err := writeEgress(abs, r); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "wrote client.crt, client.key, ca.crt and egress-selector.yaml to %s (valid until %s)\n"+
				"next: start kube-apiserver with --egress-selector-config-file=%s\n",
				abs, r.NotAfter.UTC().Format(time.RFC3339), filepath.Join(abs, "egress-selector.yaml"))
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&tenant, "tenant", "", "tenant whose API servers will use it (required)")
	f.StringVar(&dir, "out", "", "directory to write to; made if absent (required)")
	f.DurationVar(&ttl, "ttl", 365*24*time.Hour, "life of the certificate")
	c.MarkFlagRequired("tenant")
	c.MarkFlagRequired("out")
	c.MarkFlagDirname("out")
	c.RegisterFlagCompletionFunc("tenant", completeTenants(client))
	return c
}

func writeEgress(dir string, r admin.EgressResponse) error {
	selector, err := egressSelector(dir, r.Endpoint)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
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
		{"egress-selector.yaml", selector, 0o644},
	} {
		if err := durable.WriteFile(filepath.Join(dir, f.name), f.data, f.perm); err != nil {
			return err
		}
	}
	return nil
}

// egressSelector is an apiserver.k8s.io/v1beta1 EgressSelectorConfiguration. Its Go types live in
// k8s.io/apiserver, whose weight these few keys are not worth; e2e feeds it to the real API server.
func egressSelector(dir, endpoint string) ([]byte, error) {
	type object = map[string]any
	return yaml.Marshal(object{
		"apiVersion": "apiserver.k8s.io/v1beta1",
		"kind":       "EgressSelectorConfiguration",
		"egressSelections": []object{{
			"name": "cluster",
			"connection": object{
				"proxyProtocol": "HTTPConnect",
				"transport": object{"tcp": object{
					"url": endpoint,
					"tlsConfig": object{
						"caBundle":   filepath.Join(dir, "ca.crt"),
						"clientKey":  filepath.Join(dir, "client.key"),
						"clientCert": filepath.Join(dir, "client.crt"),
					},
				}},
			},
		}},
	})
}
