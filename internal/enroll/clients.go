package enroll

import (
	"context"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/mooring-edge/mooring/internal/tenant"
)

// TenantSource is where tenants are looked up; *tenant.Registry.
type TenantSource interface {
	Get(name string) (tenant.Tenant, bool)
}

// Clients gives each tenant one client of its API server, made when first asked for and made anew when the
// tenant changed. One tenant's rate limit and connections are its own.
type Clients struct {
	tenants TenantSource
	make    func(tenant.Tenant) (kubernetes.Interface, error)

	mu   sync.Mutex
	made map[string]madeClient // guarded by mu
}

type madeClient struct {
	of     tenant.Tenant
	client kubernetes.Interface
}

// NewClients looks tenants up in the source; newClient nil = NewClient.
func NewClients(tenants TenantSource, newClient func(tenant.Tenant) (kubernetes.Interface, error)) *Clients {
	if newClient == nil {
		newClient = NewClient
	}
	return &Clients{tenants: tenants, make: newClient, made: map[string]madeClient{}}
}

// NewClient makes a client of the tenant's API server.
func NewClient(t tenant.Tenant) (kubernetes.Interface, error) {
	cfg, err := t.RESTConfig()
	if err != nil {
		return nil, err
	}
	c, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("tenant %s: client of its API server: %w", t.Name, err)
	}
	return c, nil
}

// Client returns the client of a tenant; tenant.ErrNotFound if there is no such tenant.
func (c *Clients) Client(name string) (kubernetes.Interface, error) {
	t, ok := c.tenants.Get(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		delete(c.made, name)
		return nil, fmt.Errorf("%w: %s", tenant.ErrNotFound, name)
	}
	if m, ok := c.made[name]; ok && m.of.Equal(t) {
		return m.client, nil
	}
	client, err := c.make(t)
	if err != nil {
		return nil, err
	}
	if m, ok := c.made[name]; ok {
		closeIdle(m.client)
	}
	c.made[name] = madeClient{of: t, client: client}
	return client, nil
}

// WarnAboutNode writes an event about a Node at its tenant, where whoever looks at the node sees it. Best effort: the
// caller goes on without.
func WarnAboutNode(ctx context.Context, clients *Clients, tenant, node, reason, message string) error {
	client, err := clients.Client(tenant)
	if err != nil {
		return err
	}
	now := metav1.Now()
	_, err = client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "mooring-node-" + randomLowerAlnum(12), Namespace: metav1.NamespaceDefault},
		// As kubelets do, by name in place of the UID.
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)},
		Type:           corev1.EventTypeWarning, Reason: reason, Message: truncate(message, 900),
		Source:         corev1.EventSource{Component: managedBy},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil {
		return unavailable(tenant, "create an event about node "+node, err)
	}
	return nil
}
