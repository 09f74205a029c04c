package main

import (
	"cmp"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
)

// newEgressSecret is for API servers that run as pods, and for a broker that does: its image has nothing that could
// copy files out.
func newEgressSecret(client func() *admin.Client) *cobra.Command {
	var tenant, namespace, name, broker string
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "secret --tenant NAME",
		Short: "Issue an API server's client certificate as a Kubernetes Secret",
		Long: `Issue a client certificate by which a tenant's API servers reach their nodes, and print it as a
Secret with the keys client.crt, client.key, ca.crt and broker, for kubectl apply: a kube-apiserver
can mount it, or ` + "`broker egress-proxy --dir DIR`" + ` beside one. It is a secret: print it to nowhere else.`,
		Example: `  broker egress secret --tenant acme --namespace acme-system | kubectl apply -f -
  kubectl -n mooring exec statefulset/mooring-broker -- broker egress secret --tenant acme \
    --namespace acme-system | kubectl apply -f -`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkBroker(broker); err != nil {
				return err
			}
			if name == "" {
				name = tenant + "-mooring"
			}
			r, err := client().IssueEgress(c.Context(), admin.EgressRequest{Tenant: tenant, TTL: config.Duration{Duration: ttl}})
			if err != nil {
				return err
			}
			manifest, err := egressManifest(namespace, name, cmp.Or(broker, r.Broker), r)
			if err != nil {
				return err
			}
			_, err = c.OutOrStdout().Write(manifest)
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&tenant, "tenant", "", "tenant whose API servers will use it (required)")
	f.StringVarP(&namespace, "namespace", "n", "", "namespace of the Secret; kubectl's if empty")
	f.StringVar(&name, "name", "", "name of the Secret; TENANT-mooring if empty")
	f.DurationVar(&ttl, "ttl", 365*24*time.Hour, "life of the certificate")
	f.StringVar(&broker, "broker", "", "host:port by which a sidecar reaches the broker (default: front.publicEndpoint)")
	c.MarkFlagRequired("tenant")
	c.RegisterFlagCompletionFunc("tenant", completeTenants(client))
	return c
}

func egressManifest(namespace, name, broker string, r admin.EgressResponse) ([]byte, error) {
	type object = map[string]any
	meta := object{"name": name}
	if namespace != "" {
		meta["namespace"] = namespace
	}
	out, err := yaml.Marshal(object{
		"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "Opaque",
		"stringData": object{"client.crt": r.Certificate, "client.key": r.Key, "ca.crt": r.CA, "broker": broker + "\n"},
	})
	if err != nil {
		return nil, fmt.Errorf("write Secret %s: %w", name, err)
	}
	return out, nil
}
