package kamaji

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// OwnerKind is tenant.Owner.Kind of the tenants that are made here.
const OwnerKind = "TenantControlPlane"

// ErrUnreachable says that a tenant's API server did not do what was asked of it; for errors.Is.
var ErrUnreachable = errors.New("the tenant's API server does not answer")

// Tenants are the broker's.
type Tenants interface {
	// Ensure adds the tenant for its owner, given with an administrator's access; or, where it has another address or CA now,
	// brings it up to date. It returns the tenant with the broker's own access. tenant.ErrExists: the name is another owner's.
	// ErrUnreachable: the API server did not take part.
	Ensure(ctx context.Context, admin tenant.Tenant) (tenant.Tenant, error)
	// Remove removes a tenant with all that belongs to it; no error if it is gone, or another owner's.
	Remove(ctx context.Context, name string, owner tenant.Owner) error
	// List returns all tenants.
	List() []tenant.Tenant
}

// IssueFunc issues a client identity for a tenant's API server, in PEM.
type IssueFunc func(ctx context.Context, tenant string, life time.Duration) (cert, key []byte, err error)

// Config is what a Controller is made of. Tenants, Issue, Keyring, Image, BrokerEndpoint and Logger are needed.
type Config struct {
	Tenants Tenants
	Issue   IssueFunc
	// Keyring is the broker's CA of the moment.
	Keyring func() *pki.Keyring
	// Image is the sidecar's: any that runs `broker` by its entry point.
	Image string
	// BrokerEndpoint is the host:port by which the sidecar finds the brokers.
	BrokerEndpoint string
	// FrontDomain makes <tenant>.<FrontDomain> a name of the API server's certificate; empty = none.
	FrontDomain string
	// Protocol between API server and sidecar: HTTPConnect or GRPC. Default HTTPConnect.
	Protocol string
	// Namespaces that are watched; none = all.
	Namespaces []string
	// Now is the clock; nil = time.Now.
	Now        func() time.Time
	Logger     *slog.Logger
	Registerer prometheus.Registerer // nil = counted, and shown to nobody
}

// Controller connects control planes. Make it by New, then Run it. Safe for concurrent use.
type Controller struct {
	cfg     Config
	config  string // the API server's egress configuration
	metrics *metrics
	kick    chan struct{} // somebody wants all to be looked at

	// Of the manager that runs; set before it is started.
	client client.Client
	live   client.Reader // past the cache
	events events.EventRecorder
}

// New makes a controller; it starts nothing.
func New(cfg Config) (*Controller, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Protocol == "" {
		cfg.Protocol = HTTPConnect
	}
	config, err := egressSelector(cfg.Protocol)
	if err != nil {
		return nil, fmt.Errorf("egress configuration: %w", err)
	}
	return &Controller{cfg: cfg, config: config, metrics: newMetrics(cfg.Registerer), kick: make(chan struct{}, 1)}, nil
}

// Resync has all control planes looked at soon: the CA has changed, or a tenant was removed by somebody else. It never blocks.
func (c *Controller) Resync() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// owner is what the broker's tenants call an object. An empty UID stands for any.
func owner(key types.NamespacedName, uid types.UID) tenant.Owner {
	return tenant.Owner{Kind: OwnerKind, Namespace: key.Namespace, Name: key.Name, UID: string(uid)}
}

// owned are the tenants of an object of that name, whichever.
func (c *Controller) owned(key types.NamespacedName) []tenant.Tenant {
	var out []tenant.Tenant
	for _, t := range c.cfg.Tenants.List() {
		if o := t.Owner; o.Kind == OwnerKind && o.Namespace == key.Namespace && o.Name == key.Name {
			out = append(out, t)
		}
	}
	return out
}

// frontName is the tenant's name on the public port.
func (c *Controller) frontName(tenant string) string {
	if c.cfg.FrontDomain == "" {
		return ""
	}
	return tenant + "." + c.cfg.FrontDomain
}
