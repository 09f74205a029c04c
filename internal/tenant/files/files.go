package files

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/tenant"
	"github.com/mooring-edge/mooring/pkg/health"
)

// OwnerKind is tenant.Owner.Kind of the tenants that are kept here.
const OwnerKind = "File"

const (
	// lookInterval is how often the directory is looked at.
	lookInterval = 10 * time.Second
	// tryTimeout bounds one attempt at one tenant.
	tryTimeout = time.Minute
	// backoffMax is how long a tenant waits at most after an attempt that failed; the first wait is lookInterval.
	backoffMax = 2 * time.Minute
	// maxTries is how many tenants may be worked at at one time. Some 700 that don't answer take turns in it before others wait.
	maxTries = 256
	// looks is how many in a row have to agree before a tenant is changed or removed.
	looks = 2
)

// ErrConflict says that somebody else was first, or has what is wanted: the next look will tell. For errors.Is.
var ErrConflict = errors.New("in conflict with what there is")

// Want is a tenant as its file says it.
type Want struct {
	Name  string
	Owner tenant.Owner
	// Kubeconfig is an administrator's; where it could not be read KubeconfigErr says why, which matters only if it is needed.
	Kubeconfig    []byte
	KubeconfigErr error
	// Upstreams, Hosts and ServiceCIDRs are the tenant's, all of them; no ServiceCIDRs: the API server says.
	Upstreams, Hosts, ServiceCIDRs []string
	// ProxyProtocol is the tenant's; nil = the broker's default.
	ProxyProtocol *bool

	kubeconfigFile string
}

// Tenants are the broker's. All methods may be called at one time.
type Tenants interface {
	// List returns all tenants.
	List() []tenant.Tenant
	// Ensure adds the tenant for its owner, or brings it to what is wanted; it is cheap where nothing is to do.
	// tenant.ErrExists: the name is another owner's. ErrConflict: to be tried again.
	Ensure(ctx context.Context, w Want) error
	// Remove removes a tenant with all that belongs to it; no error if it is gone, or another owner's.
	Remove(ctx context.Context, name string, owner tenant.Owner) error
}

// Config is what a Keeper is made of. All of it is needed.
type Config struct {
	Dir     string // absolute
	Tenants Tenants
	Health  *health.Tracker
	Logger  *slog.Logger
}

// Keeper keeps the tenants of a directory. Make it by New, then Run it.
type Keeper struct {
	cfg   Config
	slots chan struct{}
	tries sync.WaitGroup

	mu     sync.Mutex        // guards the following
	states map[string]*state // by tenant: those with a file, and those that were made by one
	first  map[string]bool   // tenants of files when the directory was first read; nil = it never was
	trouble
}

// state is what is known of one tenant.
type state struct {
	sum     [sha256.Size]byte // of the file at the last look
	same    int               // how many looks in a row saw that
	missing int               // how many looks in a row saw no file
	seen    bool              // there was a file once
	trying  bool
	done    bool  // the broker has what the file says
	problem error // why not

	failures int
	next     time.Time // not to be tried before
}

// New makes a keeper; it starts nothing.
func New(cfg Config) *Keeper {
	return &Keeper{cfg: cfg, slots: make(chan struct{}, maxTries), states: map[string]*state{}}
}

// owner is what a tenant of a file is marked by. The directory is no part of it: it may be another one at each broker.
func owner(name string) tenant.Owner { return tenant.Owner{Kind: OwnerKind, Name: name + extension} }

// Run looks at the directory until ctx ends. It may be called once.
func (k *Keeper) Run(ctx context.Context) error {
	defer k.tries.Wait()
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		k.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// look reads the directory and starts what is to be done.
func (k *Keeper) look(ctx context.Context) {
	files, err := readDir(k.cfg.Dir)
	tenants := map[string]tenant.Tenant{}
	made := map[string]bool{} // by files
	for _, t := range k.cfg.Tenants.List() {
		tenants[t.Name] = t
		if t.Owner.Kind == OwnerKind {
			made[t.Name] = true
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.report()
	k.unreadable, k.empty = err, 0
	if err == nil && len(files) == 0 {
		k.empty = len(made)
	}
	if err != nil || len(files) == 0 {
		k.doubt(err == nil)
		return
	}
	if k.first == nil {
		k.first = made
	}
	understood := false
	for name, f := range files {
		_, there := tenants[name]
		k.present(ctx, name, f, there)
		understood = understood || f.err == nil
	}
	for name := range made {
		if _, there := files[name]; !there {
			k.absent(ctx, name, understood)
		}
	}
	for name, s := range k.states {
		if _, there := files[name]; !there && !made[name] && !s.trying {
			delete(k.states, name)
		}
	}
}

// doubt forgets what files were missing or the same, after a look that says nothing about them. k.mu is held.
func (k *Keeper) doubt(noFiles bool) {
	for _, s := range k.states {
		s.missing, s.same = 0, 0
		if noFiles && !s.trying {
			s.problem = nil // it was about a file
		}
	}
}

func (k *Keeper) state(name string) *state {
	s := k.states[name]
	if s == nil {
		s = &state{}
		k.states[name] = s
	}
	return s
}

// present sees to a tenant that has a file. k.mu is held.
func (k *Keeper) present(ctx context.Context, name string, f found, there bool) {
	s := k.state(name)
	s.missing, s.seen = 0, true
	if s.same == 0 || f.sum != s.sum || f.err != nil {
		s.sum, s.same, s.done = f.sum, 0, false
		s.failures, s.next = 0, time.Time{}
	}
	s.same++
	if f.err != nil {
		s.same = 0
		k.problem(name, s, f.err)
		return
	}
	if there && s.same < looks {
		return // it may be in the midst of being written
	}
	k.try(ctx, name, s, func(ctx context.Context) error { return k.cfg.Tenants.Ensure(ctx, f.want) })
}

// absent sees to a tenant that a file made, and that has none. sure says that at least some other file makes sense. k.mu is held.
func (k *Keeper) absent(ctx context.Context, name string, sure bool) {
	s := k.state(name)
	s.same, s.done = 0, false
	if !sure {
		s.missing = 0
		return
	}
	if !s.seen && !k.first[name] {
		return // another broker has a newer version of the directory
	}
	if s.missing++; s.missing < looks {
		return
	}
	if s.missing == looks {
		s.failures, s.next, s.problem = 0, time.Time{}, nil
		k.cfg.Logger.Warn("tenant's file is gone: the tenant is removed", "tenant", name, "dir", k.cfg.Dir)
	}
	k.try(ctx, name, s, func(ctx context.Context) error { return k.cfg.Tenants.Remove(ctx, name, owner(name)) })
}

// try does something about a tenant beside the looks, unless something is being done already or it is too early. k.mu is held.
func (k *Keeper) try(ctx context.Context, name string, s *state, do func(context.Context) error) {
	if s.trying || time.Now().Before(s.next) {
		return
	}
	s.trying = true
	sum, removal := s.sum, s.missing > 0
	k.tries.Go(func() {
		err := k.bounded(ctx, do)
		k.mu.Lock()
		defer k.mu.Unlock()
		s.trying = false
		if ctx.Err() != nil || s.sum != sum { // what the file says now is tried at the next look
			return
		}
		defer k.report()
		if err == nil {
			s.failures, s.next, s.done = 0, time.Time{}, !removal
			k.problem(name, s, nil)
			return
		}
		s.failures++
		s.done = false
		if errors.Is(err, ErrConflict) && s.failures == 1 {
			return // the next look will tell
		}
		s.next = time.Now().Add(min(lookInterval<<min(s.failures-1, 10), backoffMax))
		k.problem(name, s, err)
	})
}

func (k *Keeper) bounded(ctx context.Context, do func(context.Context) error) error {
	select {
	case k.slots <- struct{}{}:
		defer func() { <-k.slots }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	return do(ctx)
}
