package harness

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/tools"
)

// Management is a management cluster with the real Kamaji: an API server and a controller manager on the platform, without
// any node, so that the pods of what Kamaji makes are never run; HostAPIServer stands in for one.
type Management struct {
	*Tenant
	CRDs string // directory of Kamaji's

	kamaji *Proc
	binary string
	hosted *Proc
}

// Addresses on the platform's loopback.
const (
	datastoreAddress = "127.0.0.1:2479"
	hostedAddress    = "127.0.0.2" // of the hosted API server, on the port that Kamaji gives it
	kamajiNamespace  = "kamaji-system"
)

// NewManagement makes the management cluster and Kamaji's CRDs and DataStore; Kamaji does not run yet.
func (p *Platform) NewManagement(ctx context.Context) (*Management, error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	m := &Management{}
	if m.binary, m.CRDs, err = tools.Kamaji(ctx, root, p.env.Logf); err != nil {
		return nil, err
	}
	if m.Tenant, err = p.NewTenant(ctx, "management"); err != nil {
		return nil, err
	}
	api, err := m.startAPIServer(ctx, "", m.Port, p.argv(m.apiServer(m.Port)...))
	if err != nil {
		return nil, err
	}
	m.procs = append(m.procs, api)
	if err := m.startControllerManager(); err != nil {
		return nil, err
	}
	if err := m.startDatastore(ctx); err != nil {
		return nil, err
	}
	if err := m.ApplyCRDs(ctx, filepath.Join(m.CRDs, "datastore.yaml"), filepath.Join(m.CRDs, "tenantcontrolplane.yaml")); err != nil {
		return nil, err
	}
	return m, m.Apply(ctx, m.datastore())
}

// ApplyCRDs applies CRDs and waits until they are served.
func (m *Management) ApplyCRDs(ctx context.Context, files ...string) error {
	args := []string{"apply", "--server-side", "--force-conflicts"}
	for _, f := range files {
		args = append(args, "-f", f)
	}
	if _, err := m.Kubectl(ctx, args...); err != nil {
		return err
	}
	return m.Established(ctx, "datastores.kamaji.clastix.io", "tenantcontrolplanes.kamaji.clastix.io")
}

// startDatastore starts an etcd that takes clients with certificates only, as Kamaji wants it.
func (m *Management) startDatastore(ctx context.Context) error {
	p, dir := m.platform, filepath.Join(m.Dir, "datastore")
	if err := writeDatastorePKI(dir, p.Clock); err != nil {
		return err
	}
	proc, err := p.env.start("datastore", false, p.argv(p.env.Tool("etcd"),
		"--name=ds", "--data-dir="+filepath.Join(dir, "data"),
		"--listen-client-urls=https://"+datastoreAddress, "--advertise-client-urls=https://"+datastoreAddress,
		"--listen-peer-urls=http://127.0.0.1:2480", "--initial-advertise-peer-urls=http://127.0.0.1:2480", "--initial-cluster=ds=http://127.0.0.1:2480",
		"--client-cert-auth", "--trusted-ca-file="+filepath.Join(dir, "ca.crt"),
		"--cert-file="+filepath.Join(dir, "server.crt"), "--key-file="+filepath.Join(dir, "server.key"),
		"--unsafe-no-fsync", "--log-level=warn"))
	if err != nil {
		return err
	}
	m.procs = append(m.procs, proc)
	_, err = p.env.Wait(ctx, "the DataStore", time.Minute, func(ctx context.Context) error { return p.listening(ctx, datastoreAddress) })
	return err
}

func (m *Management) datastore() string {
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(m.Dir, "datastore", name))
		if err != nil {
			return err.Error()
		}
		out, _ := json.Marshal(string(data))
		return string(out)
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Namespace
metadata: {name: tenants}
---
apiVersion: v1
kind: Secret
metadata: {name: etcd, namespace: %[1]s}
stringData: {ca.crt: %[2]s, ca.key: %[3]s, tls.crt: %[4]s, tls.key: %[5]s}
---
apiVersion: kamaji.clastix.io/v1alpha1
kind: DataStore
metadata: {name: default}
spec:
  driver: etcd
  endpoints: ["%[6]s"]
  tlsConfig:
    certificateAuthority:
      certificate: {secretReference: {name: etcd, namespace: %[1]s, keyPath: ca.crt}}
      privateKey: {secretReference: {name: etcd, namespace: %[1]s, keyPath: ca.key}}
    clientCertificate:
      certificate: {secretReference: {name: etcd, namespace: %[1]s, keyPath: tls.crt}}
      privateKey: {secretReference: {name: etcd, namespace: %[1]s, keyPath: tls.key}}
`, kamajiNamespace, read("ca.crt"), read("ca.key"), read("root.crt"), read("root.key"), datastoreAddress)
}

// webhooks are the chart's about TenantControlPlanes, at an address in place of a Service. The last one tries on the
// Deployment what a change of volumes and containers would make of it.
const webhooks = `apiVersion: admissionregistration.k8s.io/v1
kind: %sWebhookConfiguration
metadata: {name: kamaji}
webhooks:
- name: tenantcontrolplane.kb.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  clientConfig: {url: "https://127.0.0.1:9443/%s-kamaji-clastix-io-v1alpha1-tenantcontrolplane", caBundle: %s}
  rules:
  - {apiGroups: [kamaji.clastix.io], apiVersions: [v1alpha1], operations: [CREATE, UPDATE], resources: [tenantcontrolplanes]}
---
`

// StartKamaji starts Kamaji's controller with its webhooks, also again.
func (m *Management) StartKamaji(ctx context.Context) error {
	p, dir := m.platform, filepath.Join(m.Dir, "kamaji")
	ca, err := writeServingPKI(filepath.Join(dir, "k8s-webhook-server", "serving-certs"), p.Clock)
	if err != nil {
		return err
	}
	m.kamaji, err = p.env.start("kamaji", false, p.argv("env",
		"KUBECONFIG="+m.Kubeconfig(), "TMPDIR="+dir, "POD_NAMESPACE="+kamajiNamespace, "SERVICE_ACCOUNT=kamaji",
		m.binary, "manager", "--leader-elect=false", "--disable-telemetry", "--datastore=default", "--tmp-directory="+dir,
		"--webhook-ca-path="+filepath.Join(dir, "k8s-webhook-server", "serving-certs", "ca.crt"), "--migrate-image=clastix/kamaji:"+tools.KamajiVersion,
		"--metrics-bind-address=127.0.0.1:8080", "--health-probe-bind-address=127.0.0.1:8081"))
	if err != nil {
		return err
	}
	if _, err := p.env.Wait(ctx, "Kamaji's webhooks", time.Minute, func(ctx context.Context) error { return p.listening(ctx, "127.0.0.1:9443") }); err != nil {
		return err
	}
	return m.Apply(ctx, fmt.Sprintf(webhooks, "Mutating", "mutate", ca)+fmt.Sprintf(webhooks, "Validating", "validate", ca))
}

// StopKamaji stops it, and takes its webhooks out.
func (m *Management) StopKamaji(ctx context.Context) error {
	_, err := m.Kubectl(ctx, "delete", "mutatingwebhookconfiguration,validatingwebhookconfiguration", "kamaji", "--ignore-not-found")
	m.kamaji.Stop()
	return err
}

// Reconciled is how often Kamaji has gone through a control plane without anything left to do, by its log.
func (m *Management) Reconciled(name string) (int, error) {
	log, err := os.ReadFile(m.kamaji.Log)
	return strings.Count(string(log), name+" has been reconciled"), err
}

// HostAPIServer runs the API server of a control plane, in the place of the pod that nobody runs: with the certificates that
// Kamaji made for it, at an address by which the name of its Service is found with the hosts file that it returns.
func (m *Management) HostAPIServer(ctx context.Context, namespace, name string) (kubeconfig string, err error) {
	dir := filepath.Join(m.Dir, "hosted", name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, secret := range []string{"ca", "api-server-certificate", "api-server-kubelet-client-certificate", "sa-certificate", "admin-kubeconfig"} {
		data, err := m.Secret(ctx, namespace, name+"-"+secret)
		if err != nil {
			return "", err
		}
		for file, content := range data {
			if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
				return "", err
			}
		}
	}
	p, at := m.platform, func(file string) string { return filepath.Join(dir, file) }
	proc, err := p.env.start("hosted-"+name, false, p.argv(p.env.Tool("kube-apiserver"),
		"--etcd-servers=http://"+etcdAddress, "--etcd-prefix=/hosted-"+name,
		"--bind-address="+hostedAddress, "--secure-port=6443", "--advertise-address="+advertisedAddr,
		"--tls-cert-file="+at("apiserver.crt"), "--tls-private-key-file="+at("apiserver.key"), "--client-ca-file="+at("ca.crt"),
		"--authorization-mode=Node,RBAC", "--enable-bootstrap-token-auth=true", "--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+at("sa.pub"), "--service-account-signing-key-file="+at("sa.key"),
		"--kubelet-client-certificate="+at("apiserver-kubelet-client.crt"), "--kubelet-client-key="+at("apiserver-kubelet-client.key")))
	if err != nil {
		return "", err
	}
	m.hosted = proc
	m.procs = append(m.procs, proc)
	kubeconfig = at("super-admin.svc")
	_, err = p.env.Wait(ctx, "the hosted API server", 2*time.Minute, func(ctx context.Context) error {
		_, err := m.HostedKubectl(ctx, kubeconfig, nil, "get", "--raw", "/readyz")
		return err
	})
	return kubeconfig, err
}

// HostedKubectl is kubectl against a hosted API server.
func (m *Management) HostedKubectl(ctx context.Context, kubeconfig string, stdin []byte, args ...string) (string, error) {
	p := m.platform
	argv := append([]string{p.env.Tool("kubectl"), "--kubeconfig", kubeconfig, "--server", "https://" + hostedAddress + ":6443",
		"--tls-server-name", "kubernetes.default.svc", "--cache-dir", filepath.Join(p.env.Dir(), "home", "kube-cache")}, args...)
	cmd := p.env.command(ctx, p.Net.Argv(argv...)...)
	cmd.Stdin = strings.NewReader(string(stdin))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// HostsFile writes an /etc/hosts by which control planes' Services are found at their stand-in.
func (m *Management) HostsFile(names ...string) (string, error) {
	path := filepath.Join(m.Dir, "hosts")
	return path, os.WriteFile(path, fmt.Appendf(nil, "127.0.0.1 localhost\n%s %s\n", hostedAddress, strings.Join(names, " ")), 0o644)
}

// Secret reads a Secret's data.
func (m *Management) Secret(ctx context.Context, namespace, name string) (map[string][]byte, error) {
	out, err := m.Kubectl(ctx, "get", "secret", "-n", namespace, name, "-o", "json")
	if err != nil {
		return nil, err
	}
	var s struct{ Data map[string][]byte }
	return s.Data, json.Unmarshal([]byte(out), &s)
}

// AccountKubeconfig writes a kubeconfig of a ServiceAccount, which has no other rights than its own.
func (m *Management) AccountKubeconfig(ctx context.Context, namespace, account string) (string, error) {
	token, err := m.Kubectl(ctx, "create", "token", "-n", namespace, account, "--duration=24h")
	if err != nil {
		return "", err
	}
	path := filepath.Join(m.Dir, account+".conf")
	return path, os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: a, user: a}}]
clusters: [{name: a, cluster: {server: "https://127.0.0.1:%d", certificate-authority: %s}}]
users: [{name: a, user: {token: %s}}]
`, m.Port, m.pki("ca.crt"), strings.TrimSpace(token)), 0o600)
}

// BrokerMetrics scrapes the broker.
func (p *Platform) BrokerMetrics(ctx context.Context) (string, error) {
	return p.env.output(ctx, "ip", append([]string{"netns", "exec", string(p.Net)}, busybox, "wget", "-q", "-O", "-", "http://"+brokerHealth+"/metrics")...)
}
