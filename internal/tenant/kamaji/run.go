package kamaji

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/mooring-edge/mooring/pkg/health"
)

// ConditionKamaji is True while the management cluster is watched, by this broker or, with it in reserve, another.
const ConditionKamaji = "Kamaji"

// LeaseName is the Lease by which one of several brokers acts.
const LeaseName = "mooring-broker-kamaji"

const (
	// workers bounds the control planes that are looked at at one time: one whose API server does not answer takes up to 45 s.
	workers = 8
	// syncTimeout is how long the first listing may take.
	syncTimeout = time.Minute
	// restartPause is that after the management API was lost.
	restartPause = 5 * time.Second
)

// RunConfig says where the management cluster is. All fields but Health are needed.
type RunConfig struct {
	REST *rest.Config
	// LeaseNamespace holds the Lease; LeaseDuration is how long a leader that is heard no more counts, RenewDeadline how long it
	// goes on itself when it can't renew, RetryPeriod how often either tries.
	LeaseNamespace                            string
	LeaseDuration, RenewDeadline, RetryPeriod time.Duration
	Health                                    *health.Tracker
}

// Run looks after the control planes while this broker leads, until ctx ends. It outlives a management API that is away,
// a Kamaji that is not installed yet, and the loss of the lead: then it waits for its turn again.
func (c *Controller) Run(ctx context.Context, cfg RunConfig) error {
	setLogger(c.logger())
	c.set(cfg, health.Unknown, "Starting", "connecting to the management cluster at "+cfg.REST.Host)
	for {
		err := c.once(ctx, cfg)
		c.metrics.lead(false)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("the watch ended by itself")
		}
		c.set(cfg, health.False, "NotWatching", "Kamaji's control planes are not watched: "+err.Error())
		c.cfg.Logger.Warn("Kamaji's control planes are not watched, trying again", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restartPause):
		}
	}
}

func (c *Controller) set(cfg RunConfig, s health.Status, reason, message string) {
	if cfg.Health != nil {
		cfg.Health.Set(ConditionKamaji, s, reason, message)
	}
}

// once runs a manager, which can't be started twice.
func (c *Controller) once(ctx context.Context, cfg RunConfig) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wait sync.WaitGroup
	defer wait.Wait()
	mgr, err := c.manager(cfg, &wait)
	if err != nil {
		return err
	}
	wait.Go(func() {
		if err := c.report(ctx, cfg, mgr); err != nil {
			stop(err)
		}
	})
	err = mgr.Start(ctx)
	if cause := context.Cause(ctx); err == nil && cause != nil {
		err = cause
	}
	stop(nil)
	return err
}

// report tells how it stands with the watch and the lead, and ends when that is told, or there is nothing to watch. Brokers
// that do not lead watch too: then it is known whether they could, and one that takes over begins at once.
func (c *Controller) report(ctx context.Context, cfg RunConfig, mgr manager.Manager) error {
	if !mgr.GetCache().WaitForCacheSync(ctx) {
		return nil
	}
	first, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	if _, err := mgr.GetCache().GetInformer(first, newObject()); err != nil {
		return fmt.Errorf("list %s: %w (is Kamaji installed, and has the broker its rights?)", Kind.GroupKind(), err)
	}
	c.set(cfg, health.True, "Standby", "another broker looks after Kamaji's control planes, or none does yet")
	select {
	case <-mgr.Elected():
		c.metrics.lead(true)
		c.cfg.Logger.Info("this broker looks after Kamaji's control planes")
		c.set(cfg, health.True, "Leading", "this broker looks after Kamaji's control planes")
	case <-ctx.Done():
	}
	return nil
}

func (c *Controller) manager(cfg RunConfig, wait *sync.WaitGroup) (manager.Manager, error) {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, err
	}
	var namespaces map[string]cache.Config
	for _, n := range c.cfg.Namespaces {
		if namespaces == nil {
			namespaces = map[string]cache.Config{}
		}
		namespaces[n] = cache.Config{}
	}
	mgr, err := manager.New(rest.CopyConfig(cfg.REST), manager.Options{
		Scheme: scheme, Logger: c.logger(),
		Metrics:                       server.Options{BindAddress: "0"}, // the broker has its own
		Cache:                         cache.Options{DefaultNamespaces: namespaces},
		Client:                        client.Options{Cache: &client.CacheOptions{Unstructured: true}},
		LeaderElection:                true,
		LeaderElectionID:              LeaseName,
		LeaderElectionNamespace:       cfg.LeaseNamespace,
		LeaderElectionReleaseOnCancel: true, // a broker that stops hands on at once
		LeaseDuration:                 &cfg.LeaseDuration,
		RenewDeadline:                 &cfg.RenewDeadline,
		RetryPeriod:                   &cfg.RetryPeriod,
		Controller:                    ctrlconfig.Controller{SkipNameValidation: new(true), CacheSyncTimeout: syncTimeout},
	})
	if err != nil {
		return nil, err
	}
	c.client, c.live, c.events = mgr.GetClient(), mgr.GetAPIReader(), mgr.GetEventRecorder("mooring-broker")
	err = builder.ControllerManagedBy(mgr).
		Named("kamaji").
		For(newObject()).
		WatchesRawSource(source.Func(func(ctx context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
			wait.Go(func() { c.resync(ctx, q) })
			return nil
		})).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(c)
	return mgr, err
}

// resync has the owners of all tenants looked at, in case that they went while nobody watched; and, each time that
// somebody wants it, all that is labelled.
func (c *Controller) resync(ctx context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) {
	for {
		for _, t := range c.cfg.Tenants.List() {
			if o := t.Owner; o.Kind == OwnerKind && c.watched(o.Namespace) {
				q.Add(reconcile.Request{NamespacedName: types.NamespacedName{Namespace: o.Namespace, Name: o.Name}})
			}
		}
		c.metrics.mu.Lock()
		for key := range c.metrics.states { // what is labelled, also without a tenant
			q.Add(reconcile.Request{NamespacedName: key})
		}
		c.metrics.mu.Unlock()
		select {
		case <-c.kick:
		case <-ctx.Done():
			return
		}
	}
}

// watched tells whether a namespace is looked at. Tenants of others are left alone.
func (c *Controller) watched(namespace string) bool {
	return len(c.cfg.Namespaces) == 0 || slices.Contains(c.cfg.Namespaces, namespace)
}

func (c *Controller) logger() logr.Logger {
	return logr.FromSlogHandler(c.cfg.Logger.Handler()).WithName("kamaji")
}

// setLogger gives controller-runtime's packages a logger; it is one for the process, and complains if it has none.
var setLogger = func() func(logr.Logger) {
	var once sync.Once
	return func(l logr.Logger) { once.Do(func() { ctrllog.SetLogger(l) }) }
}()
