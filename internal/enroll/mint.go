package enroll

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mooring-edge/mooring/internal/store"
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

// SecretMinter mints bootstrap tokens as Secrets at the tenants' API servers. It may not read Secrets there, so
// what it made stands in the broker's store from before it is made until it is gone. Safe for concurrent use.
type SecretMinter struct {
	store   Store
	clients *Clients
	now     Clock
}

// mintedToken is the record of a bootstrap token; its id is in the key. The secret is kept nowhere.
type mintedToken struct {
	Expires time.Time `json:"expires"`
}

// NewMinter makes a minter. now nil = time.Now.
func NewMinter(s Store, clients *Clients, now Clock) *SecretMinter {
	if now == nil {
		now = time.Now
	}
	return &SecretMinter{store: s, clients: clients, now: now}
}

// Mint implements Minter. The token is good for 10 minutes, and for one thing: a certificate request that the
// Approver approves for exactly this node. ErrNodeNotFound if the node is not enrolled.
func (m *SecretMinter) Mint(ctx context.Context, tenant, node string) (string, time.Time, error) {
	client, err := m.clients.Client(tenant)
	if err != nil {
		return "", time.Time{}, err
	}
	// The old go first: a crash in between costs the node one more request, not an open token.
	if err := m.EndBootstrap(ctx, tenant, node); err != nil {
		return "", time.Time{}, err
	}
	id, secret := randomLowerAlnum(6), randomLowerAlnum(16)
	expires := m.now().Add(bootstrapTTL).UTC().Truncate(time.Second)
	if err := m.remember(ctx, tenant, node, id, expires); err != nil {
		return "", time.Time{}, fmt.Errorf("tenant %s: remember a bootstrap token of node %s: %w", tenant, node, err)
	}
	_, err = client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, bootstrapSecret(node, id, secret, expires), metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) { // somebody else's token: it is not to be deleted as one of ours
		err = errors.Join(err, m.forget(ctx, bootstrapKey(tenant, node, id)))
	}
	if err != nil {
		return "", time.Time{}, unavailable(tenant, "create a bootstrap token for node "+node, err)
	}
	// Whoever ended the node's tokens meanwhile found none to delete: its record is gone, and this one is to go too.
	if _, err := m.store.Get(ctx, bootstrapKey(tenant, node, id)); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), apiCallTimeout)
		defer cancel()
		gone := client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, bootstrapPrefix+id, metav1.DeleteOptions{})
		if apierrors.IsNotFound(gone) {
			gone = nil
		}
		return "", time.Time{}, unavailable(tenant, "bootstrap token of node "+node+" was ended while it was made", errors.Join(err, gone))
	}
	return id + "." + secret, expires, nil
}

// remember writes the token's record, while the node is enrolled.
func (m *SecretMinter) remember(ctx context.Context, tenant, node, id string, expires time.Time) error {
	val, err := json.Marshal(mintedToken{expires})
	if err != nil {
		return err
	}
	return retry(ctx, func() error {
		rec, rev, err := getNode(ctx, m.store, tenant, node)
		if err != nil {
			return err
		}
		if rec.RevokedAt != nil { // since the request began
			return ErrRevoked
		}
		return m.store.Commit(ctx, store.Create(bootstrapKey(tenant, node, id), val), store.Check(nodeKey(tenant, node), rev))
	})
}

func (m *SecretMinter) forget(ctx context.Context, key string) error {
	return retry(ctx, func() error {
		it, err := m.store.Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return m.store.Commit(ctx, store.Delete(key, it.Rev))
	})
}

// EndBootstrap deletes all bootstrap tokens that were minted for a node and are not known to be gone.
// ErrUnavailable if the tenant's API server did not do it: they end by themselves within 10 minutes then.
func (m *SecretMinter) EndBootstrap(ctx context.Context, tenant, node string) error {
	return m.end(ctx, tenant, bootstrapOfNode(tenant, node), func(mintedToken) bool { return true })
}

// Sweep deletes what is left at a tenant of bootstrap tokens that have expired, of any node.
func (m *SecretMinter) Sweep(ctx context.Context, tenant string) error {
	now := m.now()
	return m.end(ctx, tenant, bootstrapOf(tenant), func(t mintedToken) bool { return !t.Expires.After(now) })
}

func (m *SecretMinter) end(ctx context.Context, tenant, prefix string, which func(mintedToken) bool) error {
	items, err := m.store.List(ctx, prefix)
	if err != nil {
		return fmt.Errorf("list the bootstrap tokens under %s: %w", prefix, err)
	}
	var errs []error
	for _, it := range items {
		var t mintedToken
		// A record that can't be read is of a token whose end is not known: it goes.
		if err := json.Unmarshal(it.Value, &t); err == nil && !which(t) {
			continue
		}
		errs = append(errs, m.endOne(ctx, tenant, it.Key))
	}
	return errors.Join(errs...)
}

func (m *SecretMinter) endOne(ctx context.Context, tenant, key string) error {
	client, err := m.clients.Client(tenant)
	if err != nil {
		return err
	}
	id := key[strings.LastIndexByte(key, '/')+1:]
	err = client.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, bootstrapPrefix+id, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return unavailable(tenant, "delete bootstrap token "+id, err)
	}
	return m.forget(ctx, key)
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
