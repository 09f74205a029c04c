package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
)

// AdvertisedAddress is where the API servers tell pods that they are, port included.
func (t *Tenant) AdvertisedAddress() string {
	return net.JoinHostPort(advertisedAddr, fmt.Sprint(t.Port))
}

// AddNeighbour connects another machine to the site's node, on a network of their own. It sends what is for the platform's
// addresses by way of the node.
func (s *Site) AddNeighbour() (host.Netns, error) {
	n, err := host.AddNetns(s.env.run.Name(s.Name + "-nb"))
	if err != nil {
		return n, err
	}
	return n, errors.Join(
		s.LAN.IP("link add eth1 type veth peer name eth0 netns "+string(n)),
		s.LAN.IP("addr add 192.168.2.1/24 dev eth1"), s.LAN.IP("link set eth1 up"),
		n.IP("addr add 192.168.2.9/24 dev eth0"), n.IP("link set eth0 up"),
		n.IP("route add "+advertisedAddr+"/32 via 192.168.2.1"),
	)
}

// UsePodCIDR has the machine's pods get their addresses from there, from the next one on.
func (b *Box) UsePodCIDR(cidr string) error { return b.Write(cniPath, cniConfigOf(cidr)) }

// proxyAccount is what a cluster's set-up makes for kube-proxy.
const proxyAccount = `apiVersion: v1
kind: ServiceAccount
metadata: {name: kube-proxy, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kube-proxy}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:node-proxier"}
subjects: [{kind: ServiceAccount, name: kube-proxy, namespace: kube-system}]
`

// StartKubeProxy starts the real kube-proxy on the box, as node's; it reaches its API server by the agent.
func (t *Tenant) StartKubeProxy(ctx context.Context, b *Box, node string) error {
	if err := t.Apply(ctx, proxyAccount); err != nil {
		return err
	}
	token, err := t.Kubectl(ctx, "create", "token", "kube-proxy", "-n", "kube-system", "--duration=2h")
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(t.pki("ca.crt"))
	if err != nil {
		return err
	}
	for path, content := range map[string]string{
		"etc/kube-proxy/ca.crt": string(ca),
		"etc/kube-proxy/kubeconfig": fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: proxy
contexts: [{name: proxy, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443", certificate-authority: /etc/kube-proxy/ca.crt}}]
users: [{name: u, user: {token: %q}}]
`, strings.TrimSpace(token)),
		// What it would set for the whole of this machine is left alone.
		"etc/kube-proxy/config.yaml": fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: %s
hostnameOverride: %s
clientConnection: {kubeconfig: /etc/kube-proxy/kubeconfig}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
`, t.PodCIDR, node),
	} {
		if err := b.Write(path, content); err != nil {
			return err
		}
	}
	if err := b.Start("kube-proxy", "kube-proxy", "--config=/etc/kube-proxy/config.yaml"); err != nil {
		return err
	}
	_, err = t.platform.env.Wait(ctx, "kube-proxy of "+b.Site.Name, 30*time.Second, func(ctx context.Context) error {
		_, err := b.Run(ctx, "nft", "list", "table", "ip", "kube-proxy")
		return err
	})
	return err
}
