// Package audit keeps the broker's audit log: one line of JSON for each enrolment, approval, issuance, refusal,
// revocation and refused dial, saying who did what to whom, from where, and why it went as it did.
//
// It is a record for people who were not there, so a line stands for itself and its field names stay. It holds
// no secrets: token ids, fingerprints and names only. Events (Event.Event):
//
//	enrol renew join            a box asked for an identity, for a new certificate, for what its kubelet needs
//	approve deny                an operator decided on a box that waited
//	issue                       a certificate was issued other than by the above (an API server's, a CA's)
//	csr                         a kubelet's certificate request at its tenant was approved or left alone
//	session dial                a tunnel session was refused; a connection to a node was refused
//	revoke remove replace       an operator ended a node, or gave its name to another box
//	quarantine resolve          two boxes with one identity were found; an operator chose one
//	token claim tenant ca       made, changed or ended by an operator (Detail "action" says which)
//
// Outcomes (Event.Outcome) are ok, refused, pending and failed.
package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/time/rate"
)

// Outcomes of an event.
const (
	OK      = "ok"
	Refused = "refused"
	Pending = "pending"
	Failed  = "failed"
)

// Refusals cost a stranger nothing, and must not cost the platform its disk: of each event, so many refusals a
// second are written (and, counted apart, so many of Pending: many boxes hold one shared token) after a burst. The next line says how many were left out (Detail "skipped"); the metric
// counts them all.
const (
	refusalRate  = rate.Limit(1)
	refusalBurst = 1000
)

// maxField cuts what a stranger may have sent, in bytes; a line has a bound then.
const maxField = 512

// Event is one line. Empty fields are left out.
type Event struct {
	// Time is set by Record where it is zero.
	Time    time.Time `json:"time"`
	Event   string    `json:"event"`
	Outcome string    `json:"outcome"`
	// Actor is who did it: an identity's URI, "key sha256:...", "operator uid=0", or "broker" for what it did by itself.
	Actor  string `json:"actor"`
	Tenant string `json:"tenant,omitempty"`
	Node   string `json:"node,omitempty"`
	// Source is the network address that it came from; empty for the broker itself and its socket.
	Source string `json:"source,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Detail holds what else is worth knowing: token, fingerprint, serial, notAfter, csr, target, action.
	Detail map[string]string `json:"detail,omitempty"`
	// Bounded says that the caller bounds these refusals by itself, so that Record need not.
	Bounded bool `json:"-"`
}

// Log writes events. A nil *Log drops them, so that parts can do without one. Safe for concurrent use.
type Log struct {
	path   string // "" where out was given
	log    *slog.Logger
	now    func() time.Time
	events *prometheus.CounterVec
	lost   prometheus.Counter

	mu       sync.Mutex // guards the following fields
	out      io.Writer
	file     *os.File                 // out, if it is a file of ours
	bad      bool                     // the last write failed, and that was said
	refusals map[string]*refusalCount // by event and outcome
}

// refusalCount bounds the refusals, or the Pending, of one event.
type refusalCount struct {
	limit   *rate.Limiter
	skipped int // since the last line
}

// Open appends to the file at path, made with mode 0600 if it is not there. A file that was moved away or removed
// (as logrotate does) is made anew with the next event; no signal is needed. reg nil = count and show nobody.
func Open(path string, log *slog.Logger, reg prometheus.Registerer) (*Log, error) {
	l := newLog(log, reg)
	l.path = path
	if err := l.reopen(); err != nil {
		return nil, fmt.Errorf("open the audit log: %w; make its directory writable, or set audit.path", err)
	}
	return l, nil
}

// New writes to w, which the caller closes.
func New(w io.Writer, log *slog.Logger, reg prometheus.Registerer) *Log {
	l := newLog(log, reg)
	l.out = w
	return l
}

func newLog(log *slog.Logger, reg prometheus.Registerer) *Log {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := promauto.With(reg)
	return &Log{
		log: log, now: time.Now, refusals: map[string]*refusalCount{},
		events: f.NewCounterVec(prometheus.CounterOpts{
			Name: "mooring_audit_events_total", Help: "Events of the audit log, by event and outcome.",
		}, []string{"event", "outcome"}),
		lost: f.NewCounter(prometheus.CounterOpts{
			Name: "mooring_audit_lost_total", Help: "Events that could not be written to the audit log.",
		}),
	}
}

// Record writes one event. It does not fail: what can't be written is counted, and goes to the program's log
// instead, so that a full disk stops no enrolment and hides nothing.
func (l *Log) Record(e Event) {
	if l == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = l.now()
	}
	e.Time = e.Time.UTC()
	e.bound()
	l.events.WithLabelValues(e.Event, e.Outcome).Inc()

	l.mu.Lock()
	defer l.mu.Unlock()
	if (e.Outcome == Refused || e.Outcome == Pending) && !e.Bounded && !l.allow(&e) {
		return
	}
	line, err := json.Marshal(e)
	if err != nil { // strings and a time: can't be
		l.log.Error("audit event can't be encoded", "event", e.Event, "err", err)
		return
	}
	line = append(line, '\n')
	if err = l.follow(); err == nil {
		_, err = l.out.Write(line)
	}
	if err == nil {
		l.bad = false
		return
	}
	l.lost.Inc()
	if !l.bad {
		l.log.Error("the audit log can't be written to; its events are in this log until it can be", "path", l.path, "err", err)
	}
	l.bad = true
	l.log.Warn("audit", "line", string(line[:len(line)-1]))
}

// allow tells whether a refusal is written, and has it say how many before it were not. l.mu is held.
func (l *Log) allow(e *Event) bool {
	key := e.Event + " " + e.Outcome
	c := l.refusals[key]
	if c == nil {
		c = &refusalCount{limit: rate.NewLimiter(refusalRate, refusalBurst)}
		l.refusals[key] = c
	}
	if !c.limit.AllowN(e.Time, 1) {
		c.skipped++
		return false
	}
	if c.skipped > 0 {
		detail := map[string]string{"skipped": strconv.Itoa(c.skipped)}
		for k, v := range e.Detail {
			detail[k] = v
		}
		e.Detail, c.skipped = detail, 0
	}
	return true
}

// bound cuts the fields to their limit. Details are the caller's, so they are copied.
func (e *Event) bound() {
	for _, s := range []*string{&e.Event, &e.Outcome, &e.Actor, &e.Tenant, &e.Node, &e.Source, &e.Reason} {
		*s = cut(*s)
	}
	if len(e.Detail) == 0 {
		e.Detail = nil
		return
	}
	detail := make(map[string]string, len(e.Detail))
	for k, v := range e.Detail {
		if v != "" {
			detail[cut(k)] = cut(v)
		}
	}
	e.Detail = detail
}

func cut(s string) string {
	if len(s) > maxField {
		return s[:maxField] + "…" // json replaces a rune that was cut in two
	}
	return s
}

// follow opens the file anew if another, or none, is at its path by now. l.mu is held.
func (l *Log) follow() error {
	if l.path == "" {
		return nil
	}
	at, err := os.Stat(l.path)
	if err == nil && l.file != nil {
		if open, err := l.file.Stat(); err == nil && os.SameFile(at, open) {
			return nil
		}
	}
	return l.reopen()
}

func (l *Log) reopen() error {
	// O_NONBLOCK: a pipe put in the file's place must not hang the broker.
	f, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("%s is not a regular file", l.path), err, f.Close())
	}
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file, l.out = f, f
	return nil
}

// Close closes the file. Events after it are lost.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
