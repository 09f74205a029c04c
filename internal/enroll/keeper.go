package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/health"
)

// ConditionTenantAccess is True while the broker's account works at every tenant.
const ConditionTenantAccess = "TenantAccess"

const (
	// keepEvery is how often the account is tried and what stands at the tenant is looked at.
	keepEvery = 10 * time.Minute
	// keepMin and keepMax bound the pause after a failure.
	keepMin = time.Second
	keepMax = 5 * time.Minute
)

// TenantUpdater changes a tenant's record; *tenant.Registry.
type TenantUpdater interface {
	Update(ctx context.Context, name string, change func(tenant.Tenant) (tenant.Tenant, error)) error
}

// Sweeper removes what is left of expired bootstrap tokens; *SecretMinter.
type Sweeper interface {
	Sweep(ctx context.Context, tenant string) error
}

// KeeperConfig is what a Keeper is made of. Tenants, Sweeper and Logger are needed.
type KeeperConfig struct {
	Tenants TenantUpdater
	Sweeper Sweeper
	Access  *Access         // nil = NewAccess with the Logger
	Health  *health.Tracker // nil = tell nobody
	Logger  *slog.Logger
	Metrics *Metrics // nil = count and show nobody
}

// Keeper keeps the broker's accounts at the tenants in use: it renews their tokens at a third of their life, tries
// them every 10 minutes, and says where an administrator is needed.
type Keeper struct {
	cfg KeeperConfig

	mu     sync.Mutex
	states map[string]accessState // guarded by mu; of the runs that are going
}

// accessState is what is known of a tenant's account.
type accessState struct {
	expires time.Time
	problem string // "" = it works
}

// NewKeeper makes a keeper; it starts nothing.
func NewKeeper(cfg KeeperConfig) *Keeper {
	if cfg.Access == nil {
		cfg.Access = NewAccess(AccessConfig{Logger: cfg.Logger})
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	return &Keeper{cfg: cfg, states: map[string]accessState{}}
}

// Run looks after one tenant's account until ctx ends. When it has renewed the token, the tenant's record changes:
// the caller is to run it again with the new one (as a Manager does). It may run for many tenants at once.
func (k *Keeper) Run(ctx context.Context, t tenant.Tenant) error {
	expiry := k.cfg.Metrics.accessExpiry.WithLabelValues(t.Name)
	expiry.Set(float64(t.Access.Expires.Unix()))
	defer k.cfg.Metrics.accessExpiry.DeleteLabelValues(t.Name)
	defer k.forget(t.Name)
	if t.Access.Account == "" {
		k.set(t, "it holds credentials of an administrator, not those of an account of the broker's")
		<-ctx.Done()
		return context.Cause(ctx)
	}
	client, err := k.cfg.Access.cfg.NewClient(t)
	if err != nil {
		return err
	}
	defer closeIdle(client)
	wait := keepMin
	for {
		next := keepEvery
		if err := k.once(ctx, client, &t); ctx.Err() != nil {
			return context.Cause(ctx)
		} else if err != nil {
			k.late(t)
			k.cfg.Logger.Warn("the broker's account at the tenant needs looking after, trying again", "tenant", t.Name, "err", err)
			next = wait/2 + rand.N(wait/2)
			wait = min(2*wait, keepMax)
		} else {
			wait = keepMin
			next = min(next, max(keepMin, renewAt(t.Access).Sub(k.cfg.Access.cfg.Now())))
		}
		if !pause(ctx, next) {
			return context.Cause(ctx)
		}
	}
}

// renewAt is a third into the token's life: two thirds are left to find out why it does not work.
func renewAt(a tenant.Access) time.Time { return a.Issued.Add(a.Expires.Sub(a.Issued) / 3) }

// once tries the account, renews its token if it is time, and sweeps.
func (k *Keeper) once(ctx context.Context, client kubernetes.Interface, t *tenant.Tenant) error {
	ctx, cancel := context.WithTimeout(ctx, apiCallTimeout)
	defer cancel()
	_, err := client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		err = nil
	}
	if err == nil {
		err = checkBindings(ctx, client)
	}
	switch {
	case apierrors.IsUnauthorized(err):
		k.set(*t, "its token is not accepted")
	case apierrors.IsForbidden(err):
		k.set(*t, "its rights were taken away")
	case errors.Is(err, errMend):
		k.set(*t, err.Error())
	case err == nil:
		k.set(*t, "")
	} // else it is away, which says nothing about the account
	if err != nil && !errors.Is(err, errMend) {
		return err
	}
	return errors.Join(err, k.renew(ctx, client, t), k.cfg.Sweeper.Sweep(ctx, t.Name))
}

func (k *Keeper) renew(ctx context.Context, client kubernetes.Interface, t *tenant.Tenant) error {
	if k.cfg.Access.cfg.Now().Before(renewAt(t.Access)) {
		return nil
	}
	renewed, err := k.cfg.Access.token(ctx, client, *t)
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	err = k.cfg.Tenants.Update(ctx, t.Name, func(now tenant.Tenant) (tenant.Tenant, error) {
		if !now.Equal(*t) {
			return now, errOvertaken
		}
		return renewed, nil
	})
	if errors.Is(err, errOvertaken) || errors.Is(err, tenant.ErrNotFound) {
		return nil // an operator was faster: what he wrote counts, and starts another run
	}
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	k.cfg.Logger.Info("token of the broker's account at the tenant renewed", "tenant", t.Name, "expires", renewed.Access.Expires)
	*t = renewed
	return nil
}

// late says so when the token is in its last third and could not be renewed.
func (k *Keeper) late(t tenant.Tenant) {
	left := t.Access.Expires.Sub(k.cfg.Access.cfg.Now())
	if left < t.Access.Expires.Sub(t.Access.Issued)/3 {
		k.set(t, "its token ends at "+t.Access.Expires.Format(time.RFC3339)+" and could not be renewed")
	}
}

// errOvertaken ends an update whose ground has changed.
var errOvertaken = errors.New("the tenant was changed meanwhile")

func (k *Keeper) forget(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.states, name)
	k.tell()
}

func (k *Keeper) set(t tenant.Tenant, problem string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.states[t.Name] = accessState{t.Access.Expires, problem}
	k.tell()
}

// tell sets the condition. k.mu is held, so that the last word is the latest.
func (k *Keeper) tell() {
	if k.cfg.Health == nil {
		return
	}
	var bad []string
	var first time.Time
	for _, name := range slices.Sorted(maps.Keys(k.states)) {
		s := k.states[name]
		if s.problem != "" {
			bad = append(bad, fmt.Sprintf("tenant %s: %s: run `broker tenant update %s --kubeconfig FILE` with an administrator's", name, s.problem, name))
		} else if first.IsZero() || s.expires.Before(first) {
			first = s.expires
		}
	}
	switch {
	case len(bad) > 0:
		k.cfg.Health.Set(ConditionTenantAccess, health.False, "AdministratorNeeded", strings.Join(bad, "; "))
	case first.IsZero():
		k.cfg.Health.Set(ConditionTenantAccess, health.True, "NoTenants", "no tenant's account to keep")
	default:
		k.cfg.Health.Set(ConditionTenantAccess, health.True, "Kept",
			fmt.Sprintf("the broker's accounts work at %d tenant(s), until %s at least", len(k.states), first.Format(time.DateOnly)))
	}
}
