package tenant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
)

// hostPrefix is where the store says which tenant has a further host, so that two brokers can't give one to two tenants.
const hostPrefix = "/mooring/tenant-hosts/"

// maxHosts bounds a tenant's further hosts: they are one commit of the store, with all else of the tenant.
const maxHosts = 64

// ErrHostTaken says that a host leads to another tenant.
var ErrHostTaken = errors.New("host leads to another tenant")

// FrontName is the name by which a tenant's API server is reached through the front; "" if there is no domain.
func (r *Registry) FrontName(tenant string) string {
	if r.Domain == "" {
		return ""
	}
	return tenant + "." + r.Domain
}

// ByHost returns the tenant to which a name that a client asks for (SNI) leads, in whatever case it is written: the one that has
// its name in the front's domain, or that has it among its hosts.
func (r *Registry) ByHost(name string) (tenant string, ok bool) {
	name = strings.ToLower(name)
	r.mu.RLock()
	defer r.mu.RUnlock()
	if label, domain, _ := strings.Cut(name, "."); r.Domain != "" && domain == r.Domain {
		_, ok = r.tenants[label]
		return label, ok
	}
	tenant, ok = r.hosts[name]
	return tenant, ok
}

// validateHosts wants names that a client can ask for by SNI, each once.
func (t Tenant) validateHosts() error {
	var errs []error
	if len(t.Hosts) > maxHosts {
		errs = append(errs, fmt.Errorf("tenant %s: %d hosts, want at most %d", t.Name, len(t.Hosts), maxHosts))
	}
	for i, h := range t.Hosts {
		if len(h) > 253 || !strings.ContainsRune(h, '.') || slices.ContainsFunc(strings.Split(h, "."), func(label string) bool { return pki.ValidTenant(label) != nil }) {
			errs = append(errs, fmt.Errorf("tenant %s: host %q: want a DNS name in lower case, such as api.acme.example", t.Name, h))
		} else if last := h[strings.LastIndexByte(h, '.')+1:]; strings.Trim(last, "0123456789") == "" {
			errs = append(errs, fmt.Errorf("tenant %s: host %q: an address is none: clients don't say by which address they came", t.Name, h))
		}
		if slices.Contains(t.Hosts[:i], h) {
			errs = append(errs, fmt.Errorf("tenant %s: host %s is given twice", t.Name, h))
		}
	}
	return errors.Join(errs...)
}

// checkHosts keeps the front's domain for the tenants' names: what is no tenant's today may be one's tomorrow.
func (r *Registry) checkHosts(t Tenant) error {
	for _, h := range t.Hosts {
		label, domain, _ := strings.Cut(h, ".")
		if r.Domain != "" && (h == r.Domain || domain == r.Domain && label != t.Name) {
			return fmt.Errorf("tenant %s: host %s: %w: names in the front's domain %s are those of tenants", t.Name, h, ErrHostTaken, r.Domain)
		}
	}
	return nil
}

// hostOps are what a commit needs beside the record of the tenant name so that its hosts are now and no more was. They are made anew
// for each try: a conflict may be another tenant's, of the same moment.
func (r *Registry) hostOps(ctx context.Context, name string, was, now []string) ([]store.Op, error) {
	var ops []store.Op
	for _, h := range now {
		it, err := r.store.Get(ctx, hostPrefix+h)
		switch owner := string(it.Value); {
		case errors.Is(err, store.ErrNotFound):
			ops = append(ops, store.Create(hostPrefix+h, []byte(name)))
		case err != nil:
			return nil, err
		case owner == name:
			ops = append(ops, store.Check(it.Key, it.Rev))
		default:
			if _, err := r.store.Get(ctx, Key(owner)); !errors.Is(err, store.ErrNotFound) {
				return nil, errors.Join(err, fmt.Errorf("tenant %s: host %s: %w: %s", name, h, ErrHostTaken, owner))
			}
			ops = append(ops, store.Replace(it.Key, []byte(name), it.Rev)) // of a tenant whose record could not be read when it was removed
		}
	}
	for _, h := range was {
		if slices.Contains(now, h) {
			continue
		}
		it, err := r.store.Get(ctx, hostPrefix+h)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		if err == nil && string(it.Value) == name {
			ops = append(ops, store.Delete(it.Key, it.Rev))
		}
	}
	return ops, nil
}

// hostsOf reads a record's hosts, also one that is good for nothing else.
func hostsOf(record []byte) []string {
	var t struct {
		Hosts []string `json:"hosts"`
	}
	_ = json.Unmarshal(record, &t)
	return t.Hosts
}

// setHosts keeps which tenant has which host. r.mu is held.
func (r *Registry) setHosts(name string, was, now []string) {
	for _, h := range was {
		if r.hosts[h] == name {
			delete(r.hosts, h)
		}
	}
	for _, h := range now {
		r.hosts[h] = name
	}
}
