package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
)

// ClaimSpec says where the box with a serial number belongs, before it comes.
type ClaimSpec struct {
	// Serial is the box's serial number, in any case.
	Serial string
	// Tenant that the box will belong to. Must exist.
	Tenant string
	// NodeName fixes the node's name; "" = as the token says.
	NodeName string
	// Labels and Taints are added to the token's; where both say something, the claim's holds.
	Labels map[string]string
	Taints []enrollapi.Taint
	// Approval is ApprovalAuto (also "") or ApprovalManual.
	Approval string
	// Fingerprint is that of the only key that may consume the claim ("sha256:..."); "" = the first that comes.
	Fingerprint string

	line int // of the CSV file that it is from; 0 = none
}

// ClaimRecord is a claim as it is stored and listed.
type ClaimRecord struct {
	Serial      string            `json:"serial"` // normalised
	Tenant      string            `json:"tenant"`
	NodeName    string            `json:"nodeName,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Taints      []enrollapi.Taint `json:"taints,omitempty"`
	Approval    string            `json:"approval"`
	Fingerprint string            `json:"fingerprint,omitempty"`
	CreatedAt   time.Time         `json:"createdAt"`
	Consumed    *ClaimUse         `json:"consumed,omitempty"` // nil: no box has come
}

// ClaimUse is the box that a claim was consumed by.
type ClaimUse struct {
	SPKI    string    `json:"spki"`
	Node    string    `json:"node"`
	TokenID string    `json:"tokenID"`
	At      time.Time `json:"at"`
}

// Errors of claims, for errors.Is.
var (
	// ErrClaimExists says that the serial number is claimed already, for something else.
	ErrClaimExists = errors.New("the serial number is claimed already")
	// ErrClaimNotFound says that there is no claim of that serial number.
	ErrClaimNotFound = errors.New("no such claim")
)

// Claims are filed ahead by operators: which box, by its serial number, belongs where. A serial number is no
// secret, so a claim is worth something only together with a valid token, and only for the first key that comes
// with it. (Claim, the type, is that box's wish.) Safe for concurrent use.
type Claims struct {
	store Store
	now   Clock
	log   *slog.Logger
}

// NewClaims makes the claims over the store. now nil = time.Now.
func NewClaims(s Store, now Clock, log *slog.Logger) *Claims {
	if now == nil {
		now = time.Now
	}
	return &Claims{store: s, now: now, log: log}
}

// Create files one claim. ErrClaimExists, tenant.ErrNotFound, or all that is wrong with the spec. A claim that is
// there already with the same content is no error.
func (c *Claims) Create(ctx context.Context, spec ClaimSpec) (ClaimRecord, error) {
	rec, err := spec.record(c.now().UTC())
	if err != nil {
		return ClaimRecord{}, err
	}
	err = retry(ctx, func() error {
		live, err := tenantLives(ctx, c.store, rec.Tenant, rec.NodeName)
		if err != nil {
			return err
		}
		there, _, err := getClaim(ctx, c.store, rec.Serial)
		if err == nil {
			if !there.says(rec) {
				return existsError(there)
			}
			rec = there
			return nil
		}
		if !errors.Is(err, ErrClaimNotFound) {
			return err
		}
		val, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		return c.store.Commit(ctx, store.Create(claimKey(rec.Serial), val), live)
	})
	if err != nil {
		return ClaimRecord{}, fmt.Errorf("create claim: %w", err)
	}
	c.log.Info("claim created", "tenant", rec.Tenant, "serial", rec.Serial, "node", rec.NodeName)
	return rec, nil
}

func existsError(there ClaimRecord) error {
	return fmt.Errorf("%w: %q is for tenant %s (broker claim delete %q frees it)", ErrClaimExists, there.Serial, there.Tenant, there.Serial)
}

// says tells whether two claims mean the same, whoever consumed them.
func (r ClaimRecord) says(other ClaimRecord) bool {
	r.CreatedAt, r.Consumed = other.CreatedAt, other.Consumed
	if len(r.Labels) == 0 && len(other.Labels) == 0 {
		r.Labels = other.Labels
	}
	if len(r.Taints) == 0 && len(other.Taints) == 0 {
		r.Taints = other.Taints
	}
	return reflect.DeepEqual(r, other)
}

// record checks a spec and makes a record of it; the error holds all problems.
func (s ClaimSpec) record(now time.Time) (ClaimRecord, error) {
	serial, ok := normalSerial(s.Serial)
	errs := []error{pki.ValidTenant(s.Tenant), validApproval(&s.Approval)}
	if !ok {
		errs = append(errs, fmt.Errorf("serial %q tells no box from others: want 1 to %d printable characters, and not what firmware says where nobody set one", cut(s.Serial, enrollapi.MaxSerial), enrollapi.MaxSerial))
	}
	if s.NodeName != "" {
		if err := validNodeName(s.NodeName); err != nil {
			errs = append(errs, fmt.Errorf("node name %q: %w", s.NodeName, err))
		}
	}
	if s.Fingerprint != "" {
		fp, err := fingerprint(s.Fingerprint)
		if err != nil {
			errs = append(errs, err)
		}
		s.Fingerprint = fp
	}
	if err := errors.Join(append(errs, validLabels(s.Labels), validTaints(s.Taints))...); err != nil {
		return ClaimRecord{}, err
	}
	return ClaimRecord{
		Serial: serial, Tenant: s.Tenant, NodeName: s.NodeName, Labels: maps.Clone(s.Labels), Taints: slices.Clone(s.Taints),
		Approval: s.Approval, Fingerprint: s.Fingerprint, CreatedAt: now,
	}, nil
}

// List returns the claims for a tenant, or all for "", by serial number.
func (c *Claims) List(ctx context.Context, tenant string) ([]ClaimRecord, error) {
	items, err := c.store.List(ctx, claimPrefix)
	if err != nil {
		return nil, fmt.Errorf("list claims: %w", err)
	}
	var out []ClaimRecord
	for _, it := range items {
		var rec ClaimRecord
		if err := json.Unmarshal(it.Value, &rec); err != nil {
			c.log.Error("claim's record in the store can't be read, it is passed over", "key", it.Key, "err", err)
			continue
		}
		if tenant == "" || rec.Tenant == tenant {
			out = append(out, rec)
		}
	}
	slices.SortFunc(out, func(a, b ClaimRecord) int { return strings.Compare(a.Serial, b.Serial) })
	return out, nil
}

// Delete takes a claim back and returns it; ErrClaimNotFound if there is none. The node of a box that consumed it
// stays; the next box with that serial number finds no claim.
func (c *Claims) Delete(ctx context.Context, serial string) (ClaimRecord, error) {
	var rec ClaimRecord
	normal, ok := normalSerial(serial)
	if !ok {
		return rec, fmt.Errorf("claim %q: %w", cut(serial, enrollapi.MaxSerial), ErrClaimNotFound)
	}
	err := retry(ctx, func() (err error) {
		var rev int64
		if rec, rev, err = getClaim(ctx, c.store, normal); err != nil {
			return err
		}
		return c.store.Commit(ctx, store.Delete(claimKey(normal), rev))
	})
	if err != nil {
		return rec, fmt.Errorf("delete claim %q: %w", normal, err)
	}
	c.log.Info("claim deleted", "tenant", rec.Tenant, "serial", normal)
	return rec, nil
}

// purgeClaims deletes the claims for a tenant that is gone.
func purgeClaims(ctx context.Context, s Store, name string, log *slog.Logger) error {
	c := NewClaims(s, nil, log)
	recs, err := c.List(ctx, name)
	errs := []error{err}
	for _, rec := range recs {
		if _, err := c.Delete(ctx, rec.Serial); !errors.Is(err, ErrClaimNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// claimKey is the key of a normalised serial number's claim; what is not plain in it is escaped.
func claimKey(serial string) string { return claimPrefix + url.PathEscape(serial) }

// getClaim returns the claim of a normalised serial number and its revision; ErrClaimNotFound with 0 if none.
func getClaim(ctx context.Context, s Store, serial string) (ClaimRecord, int64, error) {
	it, err := s.Get(ctx, claimKey(serial))
	if errors.Is(err, store.ErrNotFound) {
		return ClaimRecord{}, 0, ErrClaimNotFound
	}
	if err != nil {
		return ClaimRecord{}, 0, err
	}
	var rec ClaimRecord
	if err := json.Unmarshal(it.Value, &rec); err != nil {
		return ClaimRecord{}, 0, fmt.Errorf("claim %q: record in the store can't be read: %w", serial, err)
	}
	return rec, it.Rev, nil
}
