package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/pki"
)

// ErrConflict says that two operators changed the same thing at once.
var ErrConflict = errors.New("somebody else changed it at the same moment: look again")

// Authority is the broker's CA, kept where all brokers of a platform see it.
type Authority interface {
	// Keyring returns the keyring of the moment.
	Keyring() *pki.Keyring
	// Change replaces it by what fn makes of it; ErrConflict if it changed meanwhile.
	Change(ctx context.Context, fn func(*pki.Keyring) (*pki.Keyring, error)) (*pki.Keyring, error)
}

// Holder is a live session's node, and what it says it holds.
type Holder struct {
	Tenant, Node string
	// Trusts are the hashes of the CAs that it has on its disk; none: it said nothing yet.
	Trusts            []string
	CertificateIssuer string
}

// EgressCert is a certificate of a tenant's API servers.
type EgressCert struct {
	CAHash   string    `json:"caHash"`
	NotAfter time.Time `json:"notAfter"`
}

// EgressCerts remembers the last egress certificate of each tenant.
type EgressCerts interface {
	Put(ctx context.Context, tenant string, c EgressCert) error
	List(ctx context.Context) (map[string]EgressCert, error)
}

// CAStatus is what `broker ca status` shows.
type CAStatus struct {
	// Phase is settled, add (the next CA is trusted) or switch (it issues, the previous one is trusted).
	Phase string `json:"phase"`
	CAs   []CA   `json:"cas"`
	// Enrolled nodes that are not revoked, and those of them whose last certificate is not the issuer's.
	Enrolled int `json:"enrolled"`
	Behind   int `json:"behind"`
	// Connected nodes, those of them that trust the newest CA, and those that hold a certificate of the issuer.
	Connected int `json:"connected"`
	Trusting  int `json:"trusting"`
	Renewed   int `json:"renewed"`
	// WaitingFor are connected nodes, tenant/node, that the rotation waits for in this phase.
	WaitingFor []string `json:"waitingFor"`
	// EgressBehind are the tenants whose API servers hold a certificate of the previous CA.
	EgressBehind []EgressBehind `json:"egressBehind"`
}

// CA is one certificate authority.
type CA struct {
	Role      string    `json:"role"` // issuer, next, previous or retired
	Hash      string    `json:"hash"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

// EgressBehind is a tenant whose API servers need a new certificate before the previous CA is retired.
type EgressBehind struct {
	Tenant   string    `json:"tenant"`
	NotAfter time.Time `json:"notAfter"`
}

// CAStepRequest asks for a step of a rotation: add, switch or retire.
type CAStepRequest struct {
	// Force goes on without those that the step waits for.
	Force bool `json:"force,omitempty"`
}

// CA shows the CAs and how far a rotation is.
func (c *Client) CA(ctx context.Context) (CAStatus, error) {
	return call[CAStatus](ctx, c, http.MethodGet, "/v1/ca", nil)
}

// StepCA goes one step of a rotation: add, switch or retire.
func (c *Client) StepCA(ctx context.Context, step string, r CAStepRequest) (CAStatus, error) {
	return call[CAStatus](ctx, c, http.MethodPost, "/v1/ca/"+step, r)
}

func (b *Broker) showCA(r *http.Request) (any, error) { return b.caStatus(r.Context(), b.CA.Keyring()) }

func (b *Broker) caStatus(ctx context.Context, ring *pki.Keyring) (CAStatus, error) {
	s := CAStatus{Phase: string(ring.Phase()), WaitingFor: []string{}, EgressBehind: []EgressBehind{}}
	newest, previous := newestCA(ring).Hash, ""
	for _, ca := range ring.CAs() {
		s.CAs = append(s.CAs, CA(ca))
		if ca.Role == "previous" {
			previous = ca.Hash
		}
	}
	holders := b.Holders() // before the records: who says to be renewed is so in its record
	nodes, err := b.Nodes.List(ctx, "")
	if err != nil {
		return s, err
	}
	issuers := map[string]string{}
	for _, n := range nodes {
		if n.RevokedAt != nil {
			continue // it gets no certificate any more
		}
		s.Enrolled++
		issuers[n.Tenant+"/"+n.Name] = n.CertificateIssuer
		if n.CertificateIssuer != ring.Hash() {
			s.Behind++
		}
	}
	for _, h := range holders {
		name := h.Tenant + "/" + h.Node
		trusts := slices.Contains(h.Trusts, newest)
		renewed := h.CertificateIssuer == ring.Hash() || issuers[name] == ring.Hash()
		s.Connected++
		if trusts {
			s.Trusting++
		}
		if renewed {
			s.Renewed++
		}
		if ring.Phase() == pki.PhaseAdd && !trusts || ring.Phase() == pki.PhaseSwitch && !renewed {
			s.WaitingFor = append(s.WaitingFor, name)
		}
	}
	slices.Sort(s.WaitingFor)
	certs, err := b.EgressCerts.List(ctx)
	for tenant, c := range certs {
		_, there := b.Tenants.Get(tenant)
		if there && previous != "" && c.CAHash == previous && time.Now().Before(c.NotAfter) {
			s.EgressBehind = append(s.EgressBehind, EgressBehind{tenant, c.NotAfter})
		}
	}
	slices.SortFunc(s.EgressBehind, func(a, b EgressBehind) int { return strings.Compare(a.Tenant, b.Tenant) })
	return s, err
}

// stepCA goes one step of a rotation, if nobody would be left behind.
func (b *Broker) stepCA(r *http.Request) (any, error) {
	req, err := read[CAStepRequest](r)
	if err != nil {
		return nil, err
	}
	step := r.PathValue("step")
	ring, err := b.CA.Change(r.Context(), func(k *pki.Keyring) (*pki.Keyring, error) {
		status, err := b.caStatus(r.Context(), k)
		if err != nil {
			return nil, err
		}
		next, err := takeStep(k, step)
		if err == nil && !req.Force {
			err = status.ready(step)
		}
		return next, err
	})
	ev := audit.Event{Event: "ca", Outcome: audit.OK, Actor: Actor(r.Context()), Detail: map[string]string{"action": step}}
	if err != nil {
		ev.Outcome, ev.Reason = audit.Refused, err.Error()
		b.Audit.Record(ev)
		switch {
		case errors.Is(err, pki.ErrPhase):
			err = &Error{http.StatusConflict, err.Error() + "; see `broker ca status`"}
		case errors.Is(err, ErrConflict), errors.Is(err, errNotReady):
			err = &Error{http.StatusConflict, err.Error()}
		}
		return nil, err
	}
	newest := newestCA(ring)
	ev.Detail["ca"], ev.Detail["notAfter"] = newest.Hash, newest.NotAfter.UTC().Format(time.RFC3339)
	b.Audit.Record(ev)
	b.Logger.Info("step of the CA's rotation", "step", step, "ca", newest.Hash)
	return b.caStatus(r.Context(), ring)
}

// newestCA is the one that a rotation leads to, or led to.
func newestCA(ring *pki.Keyring) pki.CAInfo {
	all := ring.CAs()
	if ring.Phase() == pki.PhaseAdd {
		return all[1]
	}
	return all[0]
}

func takeStep(k *pki.Keyring, step string) (*pki.Keyring, error) {
	switch step {
	case "add":
		return k.Add(time.Now())
	case "switch":
		return k.Switch()
	case "retire":
		return k.Retire()
	}
	return nil, &Error{http.StatusNotFound, fmt.Sprintf("no step %q: there are add, switch and retire", step)}
}

var errNotReady = errors.New("not yet")

// ready tells why a step would leave somebody behind.
func (s CAStatus) ready(step string) error {
	switch {
	case step == "switch" && len(s.WaitingFor) > 0:
		return fmt.Errorf("%w: %d connected nodes do not hold the next CA (%s)", errNotReady, len(s.WaitingFor), Sample(s.WaitingFor))
	case step == "retire" && len(s.WaitingFor) > 0:
		return fmt.Errorf("%w: %d connected nodes have no certificate of the new CA (%s): finish `broker ca rotate`, or use --force, "+
			"and they renew by their key", errNotReady, len(s.WaitingFor), Sample(s.WaitingFor))
	case step == "retire" && len(s.EgressBehind) > 0:
		var names []string
		for _, e := range s.EgressBehind {
			names = append(names, e.Tenant)
		}
		return fmt.Errorf("%w: the API servers of %d tenant(s) hold a certificate of the CA to be retired (%s) and would lose their nodes: "+
			"`broker egress issue` for each and restart them, or use --force", errNotReady, len(names), Sample(names))
	}
	return nil
}

// Sample names the first few of many.
func Sample(names []string) string {
	if len(names) > 5 {
		return strings.Join(names[:5], ", ") + ", ..."
	}
	return strings.Join(names, ", ")
}
