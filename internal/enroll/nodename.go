package enroll

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The placeholders of a node-name rule.
const (
	inHostname = "{hostname}"
	inSerial   = "{serial}"
	inTenant   = "{tenant}"
)

// nameRule is how a token names nodes: "" = the box's hostname, a name without placeholders = that name, or a
// template such as "shop-{serial}".
type nameRule string

// split cuts the rule into literals and placeholders, in order.
func (r nameRule) split() (parts []string, err error) {
	rest := string(r)
	for rest != "" {
		open := strings.IndexAny(rest, "{}")
		if open < 0 {
			return append(parts, rest), nil
		}
		if open > 0 {
			parts = append(parts, rest[:open])
		}
		end := strings.IndexByte(rest[open:], '}')
		if rest[open] == '}' || end < 0 {
			return nil, fmt.Errorf("node name %q: a brace without its other: want %s, %s or %s", string(r), inHostname, inSerial, inTenant)
		}
		holder := rest[open : open+end+1]
		if holder != inHostname && holder != inSerial && holder != inTenant {
			return nil, fmt.Errorf("node name %q: unknown placeholder %q: want %s, %s or %s", string(r), holder, inHostname, inSerial, inTenant)
		}
		parts = append(parts, holder)
		rest = rest[open+end+1:]
	}
	return parts, nil
}

// many tells whether the rule can name more than one node of a tenant.
func (r nameRule) many() bool {
	parts, _ := r.split()
	return r == "" || slices.Contains(parts, inHostname) || slices.Contains(parts, inSerial)
}

// fixed returns the one name that the rule gives, or "" if that depends on the box.
func (r nameRule) fixed() string {
	if strings.ContainsAny(string(r), "{}") {
		return ""
	}
	return string(r)
}

// valid refuses a rule that no box could be named by.
func (r nameRule) valid() error {
	if r == "" {
		return nil
	}
	parts, err := r.split()
	if err != nil {
		return err
	}
	var name strings.Builder
	for _, p := range parts {
		if strings.HasPrefix(p, "{") {
			p = "x1" // what any of them may be
		}
		name.WriteString(p)
	}
	if err := validNodeName(name.String()); err != nil {
		return fmt.Errorf("node name %q: %w", string(r), err)
	}
	return nil
}

// expand names a box. The error says which part of the box's own words can't be used.
func (r nameRule) expand(tenant, hostname, serial string) (string, error) {
	if r == "" {
		r = inHostname
	}
	parts, err := r.split()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, p := range parts {
		switch p {
		case inHostname:
			if p, err = nodeNameFromHostname(hostname); err != nil {
				return "", err
			}
		case inSerial:
			if p, err = nameFromSerial(serial); err != nil {
				return "", fmt.Errorf("the name is to be %q: %w", string(r), err)
			}
		case inTenant:
			p = tenant
		}
		b.WriteString(p)
	}
	name := b.String()
	if err := validNodeName(name); err != nil {
		return "", fmt.Errorf("%q, made of %q, can't name a node: %w", name, string(r), err)
	}
	return name, nil
}

// nameFromSerial makes a part of a name of a serial number: lower case, and all but letters and digits becomes
// '-', at the ends nothing. Serials that differ in such characters only get the same name; the second box is told
// that the name is taken.
func nameFromSerial(serial string) (string, error) {
	serial, ok := normalSerial(serial)
	if !ok {
		return "", errors.New("the box has no serial number of its own to name the node by: use a token that names it otherwise, or file a claim with a node name")
	}
	name := strings.Trim(strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, serial), "-")
	if name == "" {
		return "", fmt.Errorf("serial number %q has neither letters nor digits to name the node by", serial)
	}
	return name, nil
}
