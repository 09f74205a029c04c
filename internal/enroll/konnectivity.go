package enroll

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What a token that is bound to a node, or to a pod on one, says of it, in the extra of its user.
const (
	extraNode    = "authentication.kubernetes.io/node-name"
	extraNodeUID = "authentication.kubernetes.io/node-uid"
)

// Bearer is who a ServiceAccount's token speaks for.
type Bearer struct {
	User string
	// Node is that to which the token, or its pod, is bound; empty: to none.
	Node, NodeUID string
}

var (
	// ErrTokenUnknown says that an API server does not take a token: expired, of another cluster, or for another audience.
	ErrTokenUnknown = errors.New("the tenant's API server does not accept the token")
	// ErrNodeGone says that there is no Node of a name at an API server.
	ErrNodeGone = errors.New("no such Node")
)

// ReviewToken asks a tenant's API server whose token it is, for the audience. ErrTokenUnknown: nobody's; ErrUnavailable: it did
// not say.
func ReviewToken(ctx context.Context, clients *Clients, tenant, token, audience string) (Bearer, error) {
	client, err := clients.Client(tenant)
	if err != nil {
		return Bearer{}, err
	}
	got, err := client.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{audience}},
	}, metav1.CreateOptions{})
	if err != nil {
		if apierrors.IsForbidden(err) {
			err = fmt.Errorf("%w (the broker's account was made without konnectivity.enabled: `broker tenant update %s --kubeconfig FILE` mends it)", err, tenant)
		}
		return Bearer{}, unavailable(tenant, "ask whose token it is", err)
	}
	return bearerOf(got.Status, audience)
}

// bearerOf reads the answer.
func bearerOf(st authenticationv1.TokenReviewStatus, audience string) (Bearer, error) {
	if !st.Authenticated {
		return Bearer{}, fmt.Errorf("%w: %.200s", ErrTokenUnknown, st.Error)
	}
	// An API server that knows no audiences says none, and took the token for its own.
	for _, a := range st.Audiences {
		if a == audience {
			return Bearer{User: st.User.Username, Node: only(st.User.Extra[extraNode]), NodeUID: only(st.User.Extra[extraNodeUID])}, nil
		}
	}
	return Bearer{}, fmt.Errorf("%w: it is not for the audience %q", ErrTokenUnknown, audience)
}

func only(v authenticationv1.ExtraValue) string {
	if len(v) == 1 {
		return v[0]
	}
	return ""
}

// NodeAddresses returns a node's InternalIPs and its kubelet's port, as its Node object says. uid, if it is not empty, has to be
// that of the object. ErrNodeGone: there is none.
func NodeAddresses(ctx context.Context, clients *Clients, tenant, name, uid string) ([]netip.Addr, uint16, error) {
	client, err := clients.Client(tenant)
	if err != nil {
		return nil, 0, err
	}
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, 0, fmt.Errorf("%w: %s", ErrNodeGone, name)
	}
	if err != nil {
		return nil, 0, unavailable(tenant, "read node "+name, err)
	}
	if uid != "" && string(node.UID) != uid {
		return nil, 0, fmt.Errorf("%w: %s is another by now", ErrNodeGone, name)
	}
	var out []netip.Addr
	for _, a := range node.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP && ip.Zone() == "" {
			out = append(out, ip.Unmap())
		}
	}
	port := uint16(10250)
	if p := node.Status.DaemonEndpoints.KubeletEndpoint.Port; p > 0 && p < 1<<16 {
		port = uint16(p)
	}
	return out, port, nil
}
