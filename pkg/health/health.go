// Package health keeps what a Mooring program knows of its own state as a small set of conditions, and
// tells it to those who ask: systemd (READY, STATUS, WATCHDOG), probes (/livez, /readyz), Prometheus
// (/metrics) and people (one line of status).
//
// It decides nothing and knows no other part of Mooring: the parts report to a Tracker what they see.
// Liveness is bound to a beat, which the program's main loop gives from inside the loop itself; a timer
// that beats beside a stuck loop would defeat it.
//
//	t := health.New(health.Config{Ready: []string{"Enrolled", "Tunnel"}})
//	t.Set("Tunnel", health.True, "Up", "connected to edge.example:443 by quic")
//	go t.Run(ctx)                      // sd_notify
//	http.Serve(l, t.Handler(registry)) // /livez /readyz /metrics
package health

import (
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Status of a condition.
type Status string

// A condition that nobody has set yet is Unknown.
const (
	True    Status = "True"
	False   Status = "False"
	Unknown Status = "Unknown"
)

// Condition is one thing about the program that is so, is not so, or is not known.
type Condition struct {
	// Type names the condition, e.g. "Tunnel".
	Type   string `json:"type"`
	Status Status `json:"status"`
	// Reason is one CamelCase word for programs.
	Reason string `json:"reason,omitempty"`
	// Message is a sentence for people; where the status is not True it says what to do or what is awaited.
	Message string `json:"message,omitempty"`
	// Since is when Status last changed.
	Since time.Time `json:"since"`
}

// Config of a Tracker. The zero value works.
type Config struct {
	// Ready lists the conditions that must be True for /readyz, in the order in which a person wants
	// to hear of them: each usually waits for the one before it.
	Ready []string
	// BeatLimit is how old the last beat may be before the program counts as stuck. Default 60s.
	BeatLimit time.Duration
	// Notify sends a state to the service manager. Default: systemd's sd_notify, silent where there is none.
	Notify func(state string) error
	// WatchdogInterval is the service manager's limit. Default: as systemd says in WATCHDOG_USEC; negative: none.
	WatchdogInterval time.Duration
	// Logger default: discards.
	Logger *slog.Logger
}

// Tracker holds the conditions. Its methods are safe for use by many goroutines.
type Tracker struct {
	cfg     Config
	changed chan struct{} // buffered by one: "look again"

	mu sync.Mutex // guards the following fields
	// conds is kept in the order of Config.Ready, then of first mention.
	conds []Condition
	beat  time.Time
}

// New returns a Tracker in which every condition of cfg.Ready is Unknown. It counts as alive from now.
func New(cfg Config) *Tracker {
	cfg.Ready = slices.Clone(cfg.Ready)
	if cfg.BeatLimit <= 0 {
		cfg.BeatLimit = 60 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Notify == nil {
		cfg.Notify = sdNotify
	}
	if cfg.WatchdogInterval == 0 {
		cfg.WatchdogInterval = sdWatchdog()
	}
	now := time.Now()
	t := &Tracker{cfg: cfg, changed: make(chan struct{}, 1), beat: now}
	for _, typ := range cfg.Ready {
		t.conds = append(t.conds, Condition{Type: typ, Status: Unknown, Reason: "NotReported", Message: "not started yet", Since: now})
	}
	return t
}

// Set records a condition. A change is logged once; saying the same again costs nothing.
func (t *Tracker) Set(typ string, status Status, reason, message string) {
	t.mu.Lock()
	i := slices.IndexFunc(t.conds, func(c Condition) bool { return c.Type == typ })
	if i < 0 {
		i = len(t.conds)
		t.conds = append(t.conds, Condition{Type: typ, Status: Unknown, Since: time.Now()})
	}
	c := &t.conds[i]
	same := c.Status == status && c.Reason == reason
	if same && c.Message == message {
		t.mu.Unlock()
		return
	}
	if c.Status != status {
		c.Since = time.Now()
	}
	c.Status, c.Reason, c.Message = status, reason, message
	t.mu.Unlock()

	if !same {
		t.cfg.Logger.Info(message, "condition", typ, "status", string(status), "reason", reason)
	}
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// Get returns a condition; Unknown if it was never set.
func (t *Tracker) Get(typ string) Condition {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.conds {
		if c.Type == typ {
			return c
		}
	}
	return Condition{Type: typ, Status: Unknown}
}

// Conditions returns a copy of all conditions.
func (t *Tracker) Conditions() []Condition {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.conds)
}

// NotReady returns the conditions that stand in the way of readiness; none means ready.
func (t *Tracker) NotReady() []Condition {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Condition
	for _, c := range t.conds {
		if c.Status != True && slices.Contains(t.cfg.Ready, c.Type) {
			out = append(out, c)
		}
	}
	return out
}

// Beat says that the program's main loop has just gone round.
func (t *Tracker) Beat() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.beat = time.Now()
}

// Alive tells whether the last beat is fresh, and how old it is.
func (t *Tracker) Alive() (bool, time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	age := time.Since(t.beat)
	return age <= t.cfg.BeatLimit, age
}

// Line is the state in one line for a person: what is missing first, else what is wrong without standing in
// the way, or else how things are.
func (t *Tracker) Line() string {
	if missing := t.NotReady(); len(missing) > 0 {
		// The later ones wait for the first: naming them all would bury the cause.
		return "not ready: " + missing[0].Message
	}
	var said []string
	for _, c := range t.Conditions() {
		if c.Status == False {
			return "ready, but: " + c.Message
		}
		if c.Status == True && c.Message != "" {
			said = append(said, c.Message)
		}
	}
	if len(said) == 0 {
		return "ready"
	}
	return "ready: " + strings.Join(said, "; ")
}
