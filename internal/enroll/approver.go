package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/time/rate"
	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/types"
	certinformers "k8s.io/client-go/informers/certificates/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/tenant"
)

const (
	defaultRecheck = 3 * time.Second
	// learnEvery is how often the API server is asked which addresses are its own.
	learnEvery     = 10 * time.Minute
	learnMin       = time.Second
	learnMax       = 30 * time.Second
	apiCallTimeout = 30 * time.Second
	approveWorkers = 4
	// A kubelet asks for a handful of certificates in its life, so a node that floods waits for itself alone.
	nodeApprovals     = rate.Limit(0.2)
	nodeApprovalBurst = 5
	// Of one requestor's waiting requests, so many a second are looked at again; others 20 times later.
	nodeRechecks     = rate.Limit(2)
	nodeRecheckBurst = 20
	crowdedRecheck   = 20
	maxRequestors    = 10_000
)

// Attester knows which addresses a node's live session attests; the switchboard.
type Attester interface {
	// NodeAddresses returns false where the node has no live session here.
	NodeAddresses(tenant, node string) ([]netip.Addr, bool)
}

// NodeSource is where node records are looked up; *Nodes.
type NodeSource interface {
	Get(ctx context.Context, tenant, node string) (NodeRecord, error)
}

// BootstrapEnder ends a node's bootstrap tokens; *SecretMinter.
type BootstrapEnder interface {
	EndBootstrap(ctx context.Context, tenant, node string) error
}

// ApproverConfig is what an Approver is made of. Nodes, Attester, Bootstrap and Logger are needed.
type ApproverConfig struct {
	Nodes     NodeSource
	Attester  Attester
	Bootstrap BootstrapEnder
	Audit     *audit.Log // nil = record nothing
	// NewClient makes the client of a tenant's API server; nil = the package's NewClient.
	NewClient func(tenant.Tenant) (kubernetes.Interface, error)
	// Recheck is how soon a request is looked at again that the node's session does not vouch for yet; 0 = 3 s.
	Recheck time.Duration
	Logger  *slog.Logger
	Metrics *Metrics // nil = count and show nobody
}

// Approver approves the certificate requests of kubelets that are exactly what the node records, the bootstrap
// tokens and the live sessions say, and leaves all others alone: they may be somebody else's to approve.
type Approver struct{ cfg ApproverConfig }

// NewApprover makes an approver; it starts nothing.
func NewApprover(cfg ApproverConfig) *Approver {
	if cfg.NewClient == nil {
		cfg.NewClient = NewClient
	}
	if cfg.Recheck == 0 {
		cfg.Recheck = defaultRecheck
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	return &Approver{cfg: cfg}
}

// Run serves one tenant until ctx ends: it watches and approves. An API server that is away is waited for. It may run for many tenants at once; they share nothing.
func (a *Approver) Run(ctx context.Context, t tenant.Tenant) error {
	client, err := a.cfg.NewClient(t)
	if err != nil {
		return err
	}
	log := a.cfg.Logger.With("tenant", t.Name)
	ctx, cancel := context.WithCancel(klog.NewContext(ctx, logr.FromSlogHandler(log.Handler())))
	defer cancel()
	r := &approverRun{
		cfg: a.cfg, tenant: t, client: client, log: log,
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](500*time.Millisecond, 30*time.Second)),
		seen:  map[string]*seenCSR{}, limits: map[string]*rate.Limiter{},
		rechecks: map[string]*rate.Limiter{}, noise: rate.NewLimiter(1, 20),
	}
	r.informer = certinformers.NewCertificateSigningRequestInformer(client, 0, cache.Indexers{})
	if err := r.watch(); err != nil {
		return fmt.Errorf("tenant %s: watch certificate requests: %w", t.Name, err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.informer.RunWithContext(ctx) })
	wg.Go(func() { r.learn(ctx) })
	for range approveWorkers {
		wg.Go(func() { r.work(ctx) })
	}
	<-ctx.Done()
	r.queue.ShutDown()
	wg.Wait()
	closeIdle(client)
	return context.Cause(ctx)
}

// approverRun is one Run.
type approverRun struct {
	cfg      ApproverConfig
	tenant   tenant.Tenant
	client   kubernetes.Interface
	log      *slog.Logger
	informer cache.SharedIndexInformer
	queue    workqueue.TypedRateLimitingInterface[string]
	reserved atomic.Pointer[[]netip.Addr] // nil until the API server has told
	noise    *rate.Limiter                // for log lines and Events on what is left alone

	mu       sync.Mutex
	seen     map[string]*seenCSR      // guarded by mu; requests that are pending, by name
	limits   map[string]*rate.Limiter // guarded by mu; approvals by enrolled node
	rechecks map[string]*rate.Limiter // guarded by mu; looks at waiting requests by requestor
}

// seenCSR remembers what was done about a pending request.
type seenCSR struct {
	uid     types.UID
	reason  string // as last reported
	cleaned bool   // the node's bootstrap tokens are deleted
	waiting bool   // it was looked at, and may become right
}

func (r *approverRun) watch() error {
	enqueue := func(obj any) {
		if csr, ok := obj.(*certificatesv1.CertificateSigningRequest); ok && pending(csr) {
			r.queue.Add(csr.Name)
		}
	}
	_, err := r.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    enqueue,
		UpdateFunc: func(_, obj any) { enqueue(obj) },
		DeleteFunc: func(obj any) {
			if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
				r.forget(key)
			}
		},
	})
	return errors.Join(err, r.informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
		if ctx.Err() == nil {
			r.log.Warn("watch of certificate requests failed, trying again", "err", err)
		}
	}))
}

// learn keeps up to date which addresses are the control plane's.
func (r *approverRun) learn(ctx context.Context) {
	for wait := learnMin; ; {
		next := learnEvery
		if err := r.learnOnce(ctx); err == nil {
			wait = learnMin
		} else if ctx.Err() == nil {
			r.log.Warn("the API server's own addresses can't be learnt, no serving certificate is approved before; trying again", "err", err)
			next = wait/2 + rand.N(wait/2)
			wait = min(2*wait, learnMax)
		}
		if !pause(ctx, next) {
			return
		}
	}
}

func (r *approverRun) learnOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiCallTimeout)
	defer cancel()
	reserved, err := controlPlaneAddresses(ctx, r.client, r.tenant)
	if err == nil {
		r.reserved.Store(&reserved)
	}
	return err
}

func (r *approverRun) work(ctx context.Context) {
	for {
		name, quit := r.queue.Get()
		if quit {
			return
		}
		r.handle(ctx, name)
		r.queue.Done(name)
	}
}

func (r *approverRun) handle(ctx context.Context, name string) {
	callCtx, cancel := context.WithTimeout(ctx, apiCallTimeout)
	defer cancel()
	again, err := r.judge(callCtx, name)
	switch {
	case err != nil:
		if ctx.Err() == nil {
			r.log.Warn("certificate request could not be handled, trying again", "csr", name, "err", err)
		}
		r.queue.AddRateLimited(name)
		return
	case again > 0:
		r.queue.AddAfter(name, again)
	}
	r.queue.Forget(name)
}
