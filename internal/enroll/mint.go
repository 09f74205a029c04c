package enroll

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	bootstrapTTL    = 10 * time.Minute
	bootstrapPrefix = "bootstrap-token-"
	// nodeLabel marks what was made for a node; its value is nodeHash, as a name may be too long for a label.
	nodeLabel      = "mooring.dev/node"
	nodeAnnotation = "mooring.dev/node-name"
)

// ErrUnavailable says that a tenant's API server did not do what was asked: away, or refusing the broker.
var ErrUnavailable = errors.New("the tenant's API server is not available")

// Minter mints bootstrap tokens; *SecretMinter.
type Minter interface {
	// Mint makes a token for the node alone; older ones of the node end. ErrUnavailable if it can't for now.
	Mint(ctx context.Context, tenant, node string) (token string, expires time.Time, err error)
}

// SecretMinter mints bootstrap tokens as Secrets at the tenants' API servers.
type SecretMinter struct {
	clients *Clients
	now     Clock
}

// NewMinter makes a minter. now nil = time.Now.
func NewMinter(clients *Clients, now Clock) *SecretMinter {
	if now == nil {
		now = time.Now
	}
	return &SecretMinter{clients: clients, now: now}
}

// Mint implements Minter. The token is good for 10 minutes, and for one thing: a certificate request that the
// Approver approves for exactly this node.
func (m *SecretMinter) Mint(ctx context.Context, tenant, node string) (string, time.Time, error) {
	client, err := m.clients.Client(tenant)
	if err != nil {
		return "", time.Time{}, err
	}
	// The old go first: a crash in between costs the node one more request, not an open token.
	if err := deleteBootstrapSecrets(ctx, client, node); err != nil {
		return "", time.Time{}, unavailable(tenant, "delete older bootstrap tokens of node "+node, err)
	}
	id, secret := randomLowerAlnum(6), randomLowerAlnum(16)
	expires := m.now().Add(bootstrapTTL).UTC().Truncate(time.Second)
	_, err = client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, bootstrapSecret(node, id, secret, expires), metav1.CreateOptions{})
	if err != nil {
		return "", time.Time{}, unavailable(tenant, "create a bootstrap token for node "+node, err)
	}
	return id + "." + secret, expires, nil
}

func bootstrapSecret(node, id, secret string, expires time.Time) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name: bootstrapPrefix + id, Namespace: metav1.NamespaceSystem,
			Labels:      map[string]string{nodeLabel: nodeHash(node), managedByLabel: managedBy},
			Annotations: map[string]string{nodeAnnotation: node},
		},
		Type: corev1.SecretTypeBootstrapToken,
		StringData: map[string]string{
			"token-id":                       id,
			"token-secret":                   secret,
			"expiration":                     expires.Format(time.RFC3339),
			"usage-bootstrap-authentication": "true",
			"auth-extra-groups":              bootstrapGroup + "," + nodeGroup(node),
			"description":                    "Mooring: TLS bootstrap of node " + node,
		},
	}
}

// deleteBootstrapSecrets ends all bootstrap tokens of the node.
func deleteBootstrapSecrets(ctx context.Context, client kubernetes.Interface, node string) error {
	secrets := client.CoreV1().Secrets(metav1.NamespaceSystem)
	list, err := secrets.List(ctx, metav1.ListOptions{LabelSelector: nodeLabel + "=" + nodeHash(node)})
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range list.Items {
		if s.Type != corev1.SecretTypeBootstrapToken {
			continue // the label alone doesn't make it ours
		}
		if err := secrets.Delete(ctx, s.Name, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func unavailable(tenant, what string, err error) error {
	return fmt.Errorf("tenant %s: %s: %w: %w", tenant, what, ErrUnavailable, err)
}

// randomLowerAlnum makes a random string in the alphabet of Kubernetes' bootstrap tokens, without bias.
func randomLowerAlnum(n int) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	const limit = 256 - 256%len(alphabet)
	out := make([]byte, 0, n)
	for b := make([]byte, 2*n); len(out) < n; {
		rand.Read(b) // never fails: crypto/rand ends the process instead
		for _, c := range b {
			if int(c) < limit && len(out) < n {
				out = append(out, alphabet[int(c)%len(alphabet)])
			}
		}
	}
	return string(out)
}
