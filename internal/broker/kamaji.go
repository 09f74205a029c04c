package broker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/internal/tenant/kamaji"
)

// runKamaji looks after Kamaji's control planes until ctx ends, if that is wanted.
func (b *broker) runKamaji(ctx context.Context, adm *admin.Broker) error {
	cfg := b.cfg.Kamaji
	if !cfg.Enabled {
		return nil
	}
	management, err := managementCluster(cfg.Kubeconfig)
	if err != nil {
		return err
	}
	lease := cfg.LeaderElection
	if lease.Namespace == "" {
		if lease.Namespace, err = ownNamespace(); err != nil {
			return err
		}
	}
	endpoint := cfg.BrokerEndpoint
	if endpoint == "" {
		endpoint = b.cfg.Front.PublicEndpoint
	}
	c, err := kamaji.New(kamaji.Config{
		Tenants: kamajiTenants{adm}, Issue: issueFor(adm), Keyring: b.ca.Keyring,
		Image: cfg.Image, BrokerEndpoint: endpoint, FrontDomain: b.cfg.Front.Domain, Protocol: cfg.Protocol, Namespaces: cfg.Namespaces,
		Logger: b.log, Registerer: b.metrics,
	})
	if err != nil {
		return err
	}
	b.kamaji.Store(c)
	defer b.tenants.Subscribe(func(t tenant.Tenant, deleted bool) {
		if deleted && t.Owner.Kind == kamaji.OwnerKind {
			c.Resync() // it may have been an operator, and the label is still there
		}
	})()
	return c.Run(ctx, kamaji.RunConfig{
		REST: management, Health: b.health, LeaseNamespace: lease.Namespace,
		LeaseDuration: lease.LeaseDuration.Duration, RenewDeadline: lease.RenewDeadline.Duration, RetryPeriod: lease.RetryPeriod.Duration,
	})
}

// resyncKamaji lets the control planes know of a new CA: their API servers' identities are of the old one.
func (b *broker) resyncKamaji() {
	if c := b.kamaji.Load(); c != nil {
		c.Resync()
	}
}

func issueFor(adm *admin.Broker) kamaji.IssueFunc {
	return func(ctx context.Context, tenant string, life time.Duration) (cert, key []byte, err error) {
		r, err := adm.IssueAPIServer(admin.WithActor(ctx, "kamaji"), admin.EgressRequest{Tenant: tenant, TTL: config.Duration{Duration: life}})
		return []byte(r.Certificate), []byte(r.Key), err
	}
}

// managementCluster is where Kamaji runs: by the kubeconfig, or, without one, the cluster that the broker runs in.
func managementCluster(kubeconfig string) (*rest.Config, error) {
	var c *rest.Config
	var err error
	if kubeconfig == "" {
		if c, err = rest.InClusterConfig(); err != nil {
			return nil, fmt.Errorf("kamaji.kubeconfig is empty, and this is no pod of a cluster: %w", err)
		}
	} else if c, err = clientcmd.BuildConfigFromFlags("", kubeconfig); err != nil {
		return nil, fmt.Errorf("kamaji.kubeconfig: %w", err)
	}
	c.UserAgent, c.QPS, c.Burst = "mooring-broker", 50, 100
	return c, nil
}

// ownNamespace is that of the broker's pod.
func ownNamespace() (string, error) {
	data, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
	if err != nil {
		return "", fmt.Errorf("kamaji.leaderElection.namespace is empty, and this is no pod of a cluster: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// kamajiTenants adds and removes tenants in the way of an operator's commands. It implements kamaji.Tenants.
type kamajiTenants struct{ adm *admin.Broker }

// List implements kamaji.Tenants.
func (k kamajiTenants) List() []tenant.Tenant { return k.adm.Tenants.List() }

// Ensure implements kamaji.Tenants.
func (k kamajiTenants) Ensure(ctx context.Context, want tenant.Tenant) (tenant.Tenant, error) {
	ctx = admin.WithActor(ctx, "kamaji "+want.Owner.String())
	have, there := k.adm.Tenants.Get(want.Name)
	if there && have.Owner != want.Owner {
		return have, fmt.Errorf("tenant %s: %w", want.Name, tenant.ErrExists)
	}
	if there && sameServer(have, want) && !runningOut(have.Access, time.Now()) {
		return have, nil
	}
	change := k.adm.AddTenant
	if there {
		change = k.adm.UpdateTenant
	}
	t, err := change(ctx, admin.TenantRequest{Name: want.Name, Kubeconfig: string(want.Kubeconfig), Owner: want.Owner})
	if e, ok := errors.AsType[*admin.Error](err); ok {
		switch e.Status {
		case http.StatusConflict:
			err = fmt.Errorf("%w: %w", tenant.ErrExists, err)
		case http.StatusBadGateway:
			err = fmt.Errorf("%w: %w", kamaji.ErrUnreachable, err)
		}
	}
	return t, err
}

// sameServer tells whether two tenants are reached and verified alike.
func sameServer(a, b tenant.Tenant) bool {
	return a.Address == b.Address && a.ServerName == b.ServerName && string(a.CA) == string(b.CA)
}

// runningOut tells whether a token that should have been renewed long ago was not: then the account is made anew.
func runningOut(a tenant.Access, now time.Time) bool {
	return a.Account != "" && a.Expires.Sub(now) < a.Expires.Sub(a.Issued)/3
}

// Remove implements kamaji.Tenants.
func (k kamajiTenants) Remove(ctx context.Context, name string, owner tenant.Owner) error {
	err := k.adm.RemoveTenant(admin.WithActor(ctx, "kamaji "+owner.String()), name, func(t tenant.Tenant) bool { return t.Owner == owner })
	if e, ok := errors.AsType[*admin.Error](err); ok && e.Status == http.StatusNotFound {
		return nil
	}
	return err
}
