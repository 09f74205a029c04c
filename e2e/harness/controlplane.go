package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Tenant is one hosted control plane.
type Tenant struct {
	Name string
	Dir  string // its PKI and kubeconfigs
	Port int    // of its API server, on the platform's loopback

	// EgressTTL is how long the certificate lives that its API server shows the broker; 0 = the broker's default.
	EgressTTL time.Duration
	// EgressMode is how its API servers reach the broker; empty = ModeConnect.
	EgressMode string
	Sidecar    *Proc // with a mode that has one, once the API server was started

	// PodCIDR, if set before Start, is where the nodes get their podCIDRs from; and the API server serves aggregated APIs.
	PodCIDR string

	platform *Platform
	procs    []*Proc
	ways     int // Ways that there are
}

// Kubeconfig has all rights from the first moment, before RBAC exists.
func (t *Tenant) Kubeconfig() string { return filepath.Join(t.Dir, "super-admin.conf") }

func (t *Tenant) pki(name string) string { return filepath.Join(t.Dir, "pki", name) }

// EgressDir holds what `broker egress issue` wrote.
func (t *Tenant) EgressDir() string { return filepath.Join(t.Dir, "egress") }

// NewTenant makes a tenant's certificates and kubeconfigs; nothing runs yet.
func (p *Platform) NewTenant(ctx context.Context, name string) (*Tenant, error) {
	t := &Tenant{
		Name: name, Dir: filepath.Join(p.env.Dir(), "tenants", name),
		Port: 6443 + 10*len(p.tenants), platform: p,
	}
	if err := os.MkdirAll(t.Dir, 0o755); err != nil {
		return nil, err
	}
	server := fmt.Sprintf("127.0.0.1:%d", t.Port)
	config := filepath.Join(t.Dir, "kubeadm.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: %s, bindPort: %d}
nodeRegistration: {name: %s, criSocket: unix:///run/none.sock}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.37.2
clusterName: %s
certificatesDir: %s
encryptionAlgorithm: ECDSA-P256
certificateValidityPeriod: 43800h0m0s
controlPlaneEndpoint: %s
apiServer: {certSANs: [127.0.0.1, %s]}
`, advertisedAddr, t.Port, name, name, t.pki(""), server, t.FrontName()), 0o644); err != nil {
		return nil, err
	}
	for _, phase := range [][]string{
		{"init", "phase", "certs", "all", "--config", config},
		{"init", "phase", "kubeconfig", "all", "--config", config, "--kubeconfig-dir", t.Dir},
	} {
		if _, err := p.env.output(ctx, p.env.Tool("kubeadm"), phase...); err != nil {
			return nil, err
		}
	}
	// kubeadm refuses a loopback address to advertise; the API server listens on none other.
	for _, name := range []string{"controller-manager.conf", "scheduler.conf"} {
		path := filepath.Join(t.Dir, name)
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		data = []byte(strings.ReplaceAll(string(data), fmt.Sprintf("%s:%d", advertisedAddr, t.Port), server))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, err
		}
	}
	p.tenants = append(p.tenants, t)
	return t, nil
}

// Start starts the API server, with the broker for its egress, the controller manager and the
// scheduler, and waits until the API server is ready.
func (t *Tenant) Start(ctx context.Context) error {
	proc, err := t.StartAPIServer(ctx, "", t.Port, t.pki("ca.crt"))
	if err != nil {
		return err
	}
	t.procs = append(t.procs, proc)
	if err := t.startControllerManager(); err != nil {
		return err
	}
	p := t.platform
	if err := t.start("kube-scheduler", p.argv(p.env.Tool("kube-scheduler"),
		"--kubeconfig="+filepath.Join(t.Dir, "scheduler.conf"), "--leader-elect=false",
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", t.Port+2))); err != nil {
		return err
	}
	_, err = p.env.Wait(ctx, t.Name+"'s default service account", 2*time.Minute, func(ctx context.Context) error {
		_, err := t.Kubectl(ctx, "get", "serviceaccount", "default", "-o", "name")
		return err
	})
	return err
}

func (t *Tenant) startControllerManager() error {
	p := t.platform
	var allocate []string
	if t.PodCIDR != "" {
		allocate = []string{"--allocate-node-cidrs=true", "--cluster-cidr=" + t.PodCIDR, "--configure-cloud-routes=false"}
	}
	return t.start("kube-controller-manager", p.argv(append([]string{p.env.Tool("kube-controller-manager"),
		"--kubeconfig=" + filepath.Join(t.Dir, "controller-manager.conf"), "--leader-elect=false",
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", t.Port+1),
		"--cluster-signing-cert-file=" + t.pki("ca.crt"), "--cluster-signing-key-file=" + t.pki("ca.key"),
		"--root-ca-file=" + t.pki("ca.crt"), "--service-account-private-key-file=" + t.pki("sa.key"),
		"--use-service-account-credentials=true", "--controllers=*,bootstrapsigner,tokencleaner"}, allocate...)...))
}

func (t *Tenant) start(name string, argv []string) error {
	proc, err := t.platform.env.start(t.Name+"/"+name, false, argv)
	if err == nil {
		t.procs = append(t.procs, proc)
	}
	return err
}

// Stop stops what Start started.
func (t *Tenant) Stop() {
	for _, proc := range slices.Backward(t.procs) {
		proc.Stop()
	}
	t.procs = nil
	if t.Sidecar != nil {
		t.Sidecar.Stop()
		t.Sidecar = nil
	}
}

// StartAPIServer starts one API server of the tenant and waits until it is ready. kubeletCA is what it
// verifies kubelets by; suffix tells a second one's process from the first's.
func (t *Tenant) StartAPIServer(ctx context.Context, suffix string, port int, kubeletCA string) (*Proc, error) {
	if t.withSidecar() && t.Sidecar == nil {
		if err := t.StartSidecar(ctx); err != nil {
			return nil, err
		}
	}
	argv := append(t.apiServer(port),
		"--kubelet-certificate-authority="+kubeletCA,
		"--kubelet-preferred-address-types=Hostname,InternalIP",
		"--egress-selector-config-file="+filepath.Join(t.EgressDir(), "egress-selector.yaml"))
	return t.startAPIServer(ctx, suffix, port, t.platform.withHosts(t.Name, argv...))
}

// apiServer is the command of an API server that does not know of the broker yet.
func (t *Tenant) apiServer(port int) []string {
	var aggregate []string
	if t.PodCIDR != "" {
		aggregate = []string{
			"--requestheader-client-ca-file=" + t.pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
			"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + t.pki("front-proxy-client.crt"), "--proxy-client-key-file=" + t.pki("front-proxy-client.key"),
		}
	}
	return append([]string{t.platform.env.Tool("kube-apiserver"),
		"--etcd-servers=http://" + etcdAddress, "--etcd-prefix=/" + t.Name,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port), "--advertise-address=" + advertisedAddr,
		"--tls-cert-file=" + t.pki("apiserver.crt"), "--tls-private-key-file=" + t.pki("apiserver.key"),
		"--client-ca-file=" + t.pki("ca.crt"), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--enable-bootstrap-token-auth=true", "--allow-privileged=true", "--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + t.pki("sa.pub"), "--service-account-signing-key-file=" + t.pki("sa.key"),
		"--kubelet-client-certificate=" + t.pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + t.pki("apiserver-kubelet-client.key"),
	}, aggregate...)
}

func (t *Tenant) startAPIServer(ctx context.Context, suffix string, port int, argv []string) (*Proc, error) {
	p := t.platform
	proc, err := p.env.start(t.Name+"/kube-apiserver"+suffix, false, argv)
	if err != nil {
		return nil, err
	}
	_, err = p.env.Wait(ctx, t.Name+"'s API server", 2*time.Minute, func(ctx context.Context) error {
		_, err := t.Kubectl(ctx, "get", "--raw", "/readyz", "--server", fmt.Sprintf("https://127.0.0.1:%d", port))
		return err
	})
	return proc, err
}

// kubeletConfig is what kubeadm would have left in the cluster, and what nodes on this kind of machine
// need: no systemd to manage cgroups, and images that nobody could pull again.
const kubeletConfig = `apiVersion: v1
kind: ConfigMap
metadata: {name: kubelet-config, namespace: kube-system}
data:
  kubelet: |
    apiVersion: kubelet.config.k8s.io/v1beta1
    kind: KubeletConfiguration
    cgroupDriver: cgroupfs
    clusterDNS: [10.96.0.10]
    clusterDomain: cluster.local
    failSwapOn: false
    failCgroupV1: false
    enforceNodeAllocatable: []
    localStorageCapacityIsolation: false
    imageGCHighThresholdPercent: 100
    evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%}
`

// SetKubeletConfig gives the tenant the ConfigMap from which its kubelets' configuration is made.
func (t *Tenant) SetKubeletConfig(ctx context.Context) error {
	return t.Apply(ctx, kubeletConfig)
}
