package tenant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
)

// Access says whose credentials a tenant's Kubeconfig holds.
type Access struct {
	// Account is the user name that the API server knows the broker by.
	Account string `json:"account,omitempty"`
	// Issued and Expires bound the life of its token: Issued by the broker's clock, Expires by the API server's.
	Issued  time.Time `json:"issued,omitzero"`
	Expires time.Time `json:"expires,omitzero"`
	// Warnings say which of the bounds around the account the API server does not keep.
	Warnings []string `json:"warnings,omitempty"`
}

// WithToken returns the tenant with a kubeconfig for the same API server, verified in the same way, that holds
// this token and no other credentials.
func (t Tenant) WithToken(token string, a Access) (Tenant, error) {
	if token == "" {
		return Tenant{}, fmt.Errorf("tenant %s: the API server issued an empty token", t.Name)
	}
	cfg, err := clientcmd.Load(t.Kubeconfig)
	if err != nil {
		return Tenant{}, fmt.Errorf("tenant %s: kubeconfig: %w", t.Name, err)
	}
	cluster, _, err := current(cfg)
	if err != nil {
		return Tenant{}, fmt.Errorf("tenant %s: %w", t.Name, err)
	}
	t = t.clone()
	if t.Kubeconfig, err = minimal(cluster, &clientcmdapi.AuthInfo{Token: token}); err != nil {
		return Tenant{}, err
	}
	t.Access = a
	return t, nil
}

// Update changes a tenant's record: change gets what the store holds and returns what it is to hold. It is asked
// again if another writer was first. An error of it ends the update, and is returned. ErrNotFound if there is no
// such tenant.
func (r *Registry) Update(ctx context.Context, name string, change func(Tenant) (Tenant, error)) error {
	if err := pki.ValidTenant(name); err != nil {
		return err
	}
	for {
		it, err := r.store.Get(ctx, Key(name))
		if errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("%w: %s", ErrNotFound, name)
		}
		if err != nil {
			return fmt.Errorf("update tenant %s: %w", name, err)
		}
		var t Tenant
		if err := decode(name, it.Value, &t); err != nil {
			return fmt.Errorf("update tenant %s: its record in the store can't be used, remove the tenant and add it again: %w", name, err)
		}
		was := t.Hosts
		if t, err = change(t); err != nil {
			return err
		}
		b, err := json.Marshal(t)
		if err == nil {
			err = errors.Join(decode(name, b, new(Tenant)), r.checkHosts(t))
		}
		if err != nil {
			return fmt.Errorf("update tenant %s: %w", name, err)
		}
		hosts, err := r.hostOps(ctx, name, was, t.Hosts)
		if err == nil {
			err = r.store.Commit(ctx, append(hosts, store.Replace(it.Key, b, it.Rev))...)
		}
		if errors.Is(err, store.ErrConflict) {
			continue // somebody was first: look again
		}
		if err != nil {
			return fmt.Errorf("update tenant %s: %w", name, err)
		}
		return nil
	}
}
