package cluster

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/internal/switchboard"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// The informers keep what is used of an object and no more: of 10,000 Nodes the images' names alone would be 50 MB.

func stripNode(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	out := &corev1.Node{ObjectMeta: named(n.ObjectMeta), Spec: corev1.NodeSpec{PodCIDR: n.Spec.PodCIDR, PodCIDRs: n.Spec.PodCIDRs}}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			out.Status.Conditions = []corev1.NodeCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	return out, nil
}

func stripService(obj any) (any, error) {
	s, ok := obj.(*corev1.Service)
	if !ok {
		return obj, nil
	}
	return &corev1.Service{ObjectMeta: named(s.ObjectMeta), Spec: corev1.ServiceSpec{ClusterIP: s.Spec.ClusterIP, ClusterIPs: s.Spec.ClusterIPs}}, nil
}

func stripSlice(obj any) (any, error) {
	s, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return obj, nil
	}
	out := &discoveryv1.EndpointSlice{ObjectMeta: named(s.ObjectMeta)}
	if service := s.Labels[discoveryv1.LabelServiceName]; service != "" {
		out.Labels = map[string]string{discoveryv1.LabelServiceName: service}
	}
	apiServer := isAPIServers(s)
	for _, e := range s.Endpoints {
		kept := discoveryv1.Endpoint{NodeName: e.NodeName, Conditions: discoveryv1.EndpointConditions{Ready: e.Conditions.Ready}}
		if apiServer {
			kept.Addresses = e.Addresses
		}
		out.Endpoints = append(out.Endpoints, kept)
	}
	if apiServer {
		out.Ports = s.Ports
	}
	return out, nil
}

func named(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, ResourceVersion: m.ResourceVersion}
}

// same tells whether an update changed something that is used.
func same(old, now any) bool {
	switch now := now.(type) {
	case *corev1.Node:
		old, ok := old.(*corev1.Node)
		return ok && reflect.DeepEqual(old.Spec, now.Spec) && reflect.DeepEqual(old.Status, now.Status)
	case *corev1.Service:
		old, ok := old.(*corev1.Service)
		return ok && reflect.DeepEqual(old.Spec, now.Spec)
	case *discoveryv1.EndpointSlice:
		old, ok := old.(*discoveryv1.EndpointSlice)
		return ok && reflect.DeepEqual(old.Endpoints, now.Endpoints) && reflect.DeepEqual(old.Ports, now.Ports) && reflect.DeepEqual(old.Labels, now.Labels)
	}
	return false
}

func nodesOf(objects []any) map[string]switchboard.Node {
	out := map[string]switchboard.Node{}
	for _, obj := range objects {
		n, ok := obj.(*corev1.Node)
		if !ok {
			continue
		}
		texts := n.Spec.PodCIDRs
		if len(texts) == 0 {
			texts = []string{n.Spec.PodCIDR}
		}
		node := switchboard.Node{PodCIDRs: prefixes(texts)}
		for _, c := range n.Status.Conditions {
			node.Ready = node.Ready || c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		}
		out[n.Name] = node
	}
	return out
}

// prefixes are those that can be read.
func prefixes(texts []string) (out []netip.Prefix) {
	for _, s := range texts {
		if p, err := netip.ParsePrefix(strings.TrimSpace(s)); err == nil && !p.Addr().Is4In6() {
			out = append(out, p.Masked())
		}
	}
	return out
}

// backendsOf joins Services, by their addresses, with the nodes of their ready endpoints.
func backendsOf(services, endpointSlices []any) map[netip.Addr]switchboard.Backends {
	type key struct{ namespace, name string }
	behind := map[key]switchboard.Backends{}
	for _, obj := range endpointSlices {
		s, ok := obj.(*discoveryv1.EndpointSlice)
		if !ok {
			continue
		}
		k := key{s.Namespace, s.Labels[discoveryv1.LabelServiceName]}
		b := behind[k]
		for _, e := range s.Endpoints {
			switch {
			case e.Conditions.Ready != nil && !*e.Conditions.Ready: // nil: ready
			case e.NodeName == nil || *e.NodeName == "":
				b.Elsewhere = true
			default:
				b.Nodes = append(b.Nodes, *e.NodeName)
			}
		}
		behind[k] = b
	}
	out := map[netip.Addr]switchboard.Backends{}
	for _, obj := range services {
		s, ok := obj.(*corev1.Service)
		if !ok {
			continue
		}
		b := behind[key{s.Namespace, s.Name}]
		b.Nodes = slices.Clone(b.Nodes)
		slices.Sort(b.Nodes)
		b.Nodes = slices.Compact(b.Nodes)
		for _, text := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
			if a, err := netip.ParseAddr(text); err == nil { // else it is headless
				out[a.Unmap()] = b
			}
		}
	}
	return out
}

// isAPIServers tells whether a slice is that of the control plane's own addresses, which API servers write.
func isAPIServers(s *discoveryv1.EndpointSlice) bool {
	return s.Namespace == metav1.NamespaceDefault && s.Name == "kubernetes"
}

// apiServersOf are where the control plane is advertised, in order.
func apiServersOf(endpointSlices []any) (out []netip.AddrPort) {
	for _, obj := range endpointSlices {
		s, ok := obj.(*discoveryv1.EndpointSlice)
		if !ok || !isAPIServers(s) {
			continue
		}
		for _, p := range s.Ports {
			if p.Port == nil || *p.Port < 1 || *p.Port > 65535 || p.Name != nil && *p.Name != "" && *p.Name != "https" {
				continue
			}
			for _, e := range s.Endpoints {
				for _, text := range e.Addresses {
					if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
						out = append(out, netip.AddrPortFrom(a.Unmap(), uint16(*p.Port)))
					}
				}
			}
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	out = slices.Compact(out)
	return out[:min(len(out), wire.MaxAPIServers)]
}

// kubeadmConfig is where kubeadm, and Kamaji, leave what a cluster was made with.
const kubeadmConfig = "kubeadm-config"

// serviceRanges asks for the ranges of Services: the ServiceCIDRs, which are there since Kubernetes 1.33; before that,
// what the cluster was made with, if that is to be found.
func serviceRanges(ctx context.Context, client kubernetes.Interface) ([]netip.Prefix, error) {
	list, err := client.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{})
	if err == nil && len(list.Items) > 0 {
		var texts []string
		for _, c := range list.Items {
			if c.DeletionTimestamp.IsZero() {
				texts = append(texts, c.Spec.CIDRs...)
			}
		}
		return sorted(prefixes(texts)), nil
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return nil, fmt.Errorf("list ServiceCIDRs: %w", err)
	}
	cm, cmErr := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, kubeadmConfig, metav1.GetOptions{})
	if cmErr != nil {
		return nil, fmt.Errorf("neither ServiceCIDRs nor the ConfigMap %s tell them (`broker tenant update --service-cidr` does): %v; %w", kubeadmConfig, err, cmErr)
	}
	var conf struct {
		Networking struct {
			ServiceSubnet string `json:"serviceSubnet"`
		} `json:"networking"`
	}
	if err := yaml.Unmarshal([]byte(cm.Data["ClusterConfiguration"]), &conf); err != nil {
		return nil, fmt.Errorf("read ConfigMap %s: %w", kubeadmConfig, err)
	}
	return sorted(prefixes(strings.Split(conf.Networking.ServiceSubnet, ","))), nil
}

func sorted(p []netip.Prefix) []netip.Prefix {
	slices.SortFunc(p, netip.Prefix.Compare)
	return slices.Compact(p)
}
