// Package join takes a box from an enrolment token to a kubelet that can start: identity, then what the
// control plane wants of its kubelets, then the kubelet's client certificate, then the kubelet's files.
//
// Every step is idempotent, and its outcome is on disk before the next one begins, so that a process
// killed anywhere goes on from there. What is on disk is read with distrust: a file that is empty or
// torn is as good as absent, except for the node's key, which is never overwritten and never removed
// but by Reset.
//
//	node.key            the node's lasting identity: made first, kept for ever
//	identity.json       what the broker made of it: name, certificate, CA bundle    (Enrol, Renew, SaveBundle)
//	clock               the time that it is at least, as the broker's CA has vouched for
//	join.json           what the control plane wants of its kubelets, no secrets    (Bootstrap)
//	kubelet-client.key  the key of the certificate that is being asked for
//
// The package talks to the broker over HTTPS, and to the API server through whatever listens on
// Config.APIAddress; it knows no tunnel. Its subpackage kubelet writes files and runs the process.
package join

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/rounds"
	"github.com/mooring-edge/mooring/pkg/join/kubelet"
)

// Bundle is what a box must be given to join: where, whom to trust, and the right to.
type Bundle struct {
	Endpoint     string // host:port
	Tenant       string // empty: the broker's to say
	Token        string
	CACertHashes []string
}

// Step names a part of the way, for reports.
type Step string

// The steps, in order.
const (
	StepEnrol     Step = "enrol"
	StepRenew     Step = "renew"
	StepBootstrap Step = "bootstrap"
)

// Progress is a report on a step that is not through yet.
type Progress struct {
	Step Step
	// Doing says in a sentence what is under way, if Err is nil.
	Doing string
	// Err is what went wrong.
	Err error
	// RetryIn is when it is tried again; 0 for never.
	RetryIn time.Duration
}

// Config of a Joiner.
type Config struct {
	StateDir string
	// Bundle reads the join bundle. It is asked only while there is something to enrol for.
	Bundle func() (Bundle, error)
	// Endpoint overrides the bundle's and the identity's broker address.
	Endpoint string
	// Proxy says by which HTTP proxy a URL is reached; nil, or an answer of nil: directly.
	Proxy func(*url.URL) (*url.URL, error)
	// Hostname asks for a node name.
	Hostname string
	// Serial is the machine's, by which a claim may know it. Default: none.
	Serial  string
	Version string

	// APIAddress is the node's local API endpoint, host:port.
	APIAddress string
	Kubelet    Kubelet

	// StopOnRefusal has a broker's refusal end the work; by default it is tried again each
	// RefusedRetry, since an operator may put it right.
	StopOnRefusal bool
	// RefusedRetry default: 1m.
	RefusedRetry time.Duration
	// BackoffMin and BackoffMax bound the full-jitter backoff of what may come right by itself. Defaults 0.5s, 60s.
	BackoffMin, BackoffMax time.Duration
	// IssuerSpread is the time over which the renewals of all nodes are spread when the broker's CA has
	// changed. Default 1m.
	IssuerSpread time.Duration
	// RequestTimeout bounds each request to the broker. Default 30s.
	RequestTimeout time.Duration
	// IssueTimeout bounds the wait for the kubelet's certificate, before it is asked for anew. Default 5m.
	IssueTimeout time.Duration

	// WriteFile replaces a file of the state directory, whole and durably. Default: durable.WriteFile.
	WriteFile func(path string, data []byte, perm fs.FileMode) error
	// Now is the system's clock. Default: time.Now.
	Now func() time.Time
	// Report is told what is being waited for. Default: nobody.
	Report func(Progress)
	// Beat is called again and again while a retry is waited for. Default: nobody is told.
	Beat    func()
	Metrics *Metrics     // default: none
	Logger  *slog.Logger // default: discards

	after func(milestone) error // tests stop the work here
}

// Kubelet is what the agent's configuration says of the kubelet.
type Kubelet struct {
	RootDir   string
	Port      int
	Addresses []netip.Addr // set by the operator; none: the kubelet finds its own
	ExtraArgs []string
	Overlay   map[string]any
}

// probeInterval is for how long a state directory that took a file is believed to take another.
const probeInterval = 10 * time.Minute

// milestone is a point at which a killed process has left the most on disk that it will.
type milestone string

const (
	keyWritten      milestone = "key written"
	enrolAnswered   milestone = "enrolment answered"
	renewAnswered   milestone = "renewal answered"
	identityWritten milestone = "identity written"
	joinAnswered    milestone = "join answered"
	recordWritten   milestone = "record written"
	pendingWritten  milestone = "kubelet key written"
	csrCreated      milestone = "CSR created"
	csrIssued       milestone = "CSR issued"
	pairWritten     milestone = "kubelet certificate written"
	pendingRemoved  milestone = "kubelet key removed"
)

// Joiner does the steps. Enrol, Bootstrap and Reset are not for use beside themselves or each other; all
// else is safe for concurrent use.
type Joiner struct {
	cfg   Config
	paths kubelet.Paths
	clock *Clock

	identityMu sync.Mutex // guards the identity's file and the following fields
	// unsaved is an identity newer than the one on disk, which did not take it.
	unsaved *Identity
	// last is the newest identity that this process has seen.
	last *Identity
	// blind tells that the disk does not give it any more, and that this was said.
	blind bool

	// probed is when the state directory was last seen to take a file, in ns of the clock that nobody sets; 0:
	// it was not.
	probed atomic.Int64

	// grant is the last answer to a join request, kept for as long as its bootstrap token lives.
	grant *grant
}

// New returns a Joiner with the defaults filled in; it touches nothing.
func New(cfg Config) *Joiner {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&cfg.RefusedRetry, time.Minute)
	def(&cfg.BackoffMin, 500*time.Millisecond)
	def(&cfg.BackoffMax, time.Minute)
	def(&cfg.IssuerSpread, time.Minute)
	def(&cfg.RequestTimeout, 30*time.Second)
	def(&cfg.IssueTimeout, 5*time.Minute)
	if cfg.Report == nil {
		cfg.Report = func(Progress) {}
	}
	if cfg.Beat == nil {
		cfg.Beat = func() {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.WriteFile == nil {
		cfg.WriteFile = durable.WriteFile
	}
	j := &Joiner{cfg: cfg, paths: kubelet.PathsIn(cfg.StateDir, cfg.Kubelet.RootDir)}
	j.clock = newClock(j.in("clock"), cfg.Now, cfg.WriteFile, cfg.Logger)
	return j
}

// Clock is the time that this box knows of.
func (j *Joiner) Clock() *Clock { return j.clock }

// Paths says where the kubelet's files are.
func (j *Joiner) Paths() kubelet.Paths { return j.paths }

func (j *Joiner) in(name string) string { return filepath.Join(j.cfg.StateDir, name) }

func (j *Joiner) keyFile() string      { return j.in("node.key") }
func (j *Joiner) identityFile() string { return j.in("identity.json") }
func (j *Joiner) recordFile() string   { return j.in("join.json") }
func (j *Joiner) pendingFile() string  { return j.in("kubelet-client.key") }

// reached marks a milestone.
func (j *Joiner) reached(m milestone) error {
	if j.cfg.after == nil {
		return nil
	}
	return j.cfg.after(m)
}

// PrepareStateDir makes the state directory and checks that it can be written to, so that a disk that is
// full or read-only is found out before a token is spent.
func PrepareStateDir(dir string) error {
	return ProbeStateDir(dir, durable.WriteFile)
}

// prepareStateDir is not done at each attempt: a box may wait for months, asking twice a minute, and disks wear.
func (j *Joiner) prepareStateDir() error {
	if at := j.probed.Load(); at != 0 && j.clock.passed()-time.Duration(at) < probeInterval {
		return nil
	}
	j.probed.Store(0)
	if err := ProbeStateDir(j.cfg.StateDir, j.cfg.WriteFile); err != nil {
		return err
	}
	j.probed.Store(int64(j.clock.passed()))
	return nil
}

// ProbeStateDir is PrepareStateDir with another way to write.
func ProbeStateDir(dir string, write func(path string, data []byte, perm fs.FileMode) error) error {
	err := durable.MkdirAll(dir, 0o700)
	if err == nil {
		err = write(filepath.Join(dir, "writable"), []byte("ok\n"), 0o600)
	}
	if err != nil {
		return fmt.Errorf("state directory %s can't be written to: %w; make it writable, or set stateDir", dir, err)
	}
	return os.Remove(filepath.Join(dir, "writable"))
}

// Render makes the kubelet's files from the record.
func (j *Joiner) Render(rec *Record) (*kubelet.Rendered, error) {
	return kubelet.Render(kubelet.Settings{
		Node:          rec.Node,
		APIAddress:    j.cfg.APIAddress,
		APIServerName: rec.APIServerName,
		APIServerCA:   []byte(rec.APIServerCA),
		Configuration: rec.KubeletConfiguration,
		Overlay:       j.cfg.Kubelet.Overlay,
		Labels:        rec.Labels,
		Taints:        rec.Taints,
		Port:          j.cfg.Kubelet.Port,
		Addresses:     j.cfg.Kubelet.Addresses,
		ExtraArgs:     j.cfg.Kubelet.ExtraArgs,
		// A kubelet whose certificate had to be asked for anew should not wait for the old one's end.
		Revision: rec.JoinedAt.UTC().Format(time.RFC3339Nano),
		Paths:    j.paths,
	})
}

// wait lets d pass; it fails only when ctx ends.
func (j *Joiner) wait(ctx context.Context, d time.Duration) error {
	const round = 10 * time.Second
	for {
		j.cfg.Beat()
		step := min(d, rounds.Until(round))
		t := time.NewTimer(step)
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
		if d -= step; d <= 0 {
			return nil
		}
	}
}

// errStopped is what a test's hook returns to end the work as a kill would.
var errStopped = errors.New("stopped")
