package enroll

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/store"
)

const (
	// MaxClaimsCSV limits a file of claims, in bytes.
	MaxClaimsCSV = 1 << 20
	// MaxClaimsAtOnce limits the claims in one file.
	MaxClaimsAtOnce = 5000
	// claimBatch is how many claims are one commit: with a condition for each one's tenant at most, half of the
	// store's limit of operations. claimBatchBytes keeps a batch below its limit of bytes.
	claimBatch      = 250
	claimBatchBytes = 1 << 20
	// maxCSVProblems bounds the answer to a file that is something else altogether.
	maxCSVProblems = 50
)

var claimColumns = []string{"serial", "tenant", "node-name", "labels", "taints"}

// ParseClaims reads claims from CSV (RFC 4180) with the header serial,tenant,node-name,labels,taints. Labels are
// "key=value", taints "key=value:Effect" or "key:Effect", several with ';' between. The error holds all that is wrong,
// each with its line; then there are no claims.
func ParseClaims(data []byte) ([]ClaimSpec, error) {
	if len(data) > MaxClaimsCSV {
		return nil, fmt.Errorf("%d bytes of claims, at most %d are taken: split the file", len(data), MaxClaimsCSV)
	}
	r := csv.NewReader(strings.NewReader(strings.TrimPrefix(string(data), "\ufeff"))) // spreadsheets write a BOM
	r.FieldsPerRecord = -1                                                            // said in our own words
	header, err := r.Read()
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, csvProblem(err)
	}
	if !slices.Equal(header, claimColumns) {
		return nil, fmt.Errorf("line 1: want the header %q, got %q", strings.Join(claimColumns, ","), cut(strings.Join(header, ","), 100))
	}
	var specs []ClaimSpec
	problems := problemList{}
	for {
		fields, err := r.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			problems.add(csvProblem(err)) // where the next line begins is not known then
			break
		}
		line, _ := r.FieldPos(0)
		if len(specs) == MaxClaimsAtOnce {
			problems.add(fmt.Errorf("line %d: more than %d claims: split the file", line, MaxClaimsAtOnce))
			break
		}
		if len(fields) != len(claimColumns) {
			problems.add(fmt.Errorf("line %d: %d fields, want %d (%s)", line, len(fields), len(claimColumns), strings.Join(claimColumns, ",")))
			continue
		}
		spec, err := claimOfFields(fields)
		spec.line = line
		if err != nil {
			problems.add(atLine(line, err))
		}
		specs = append(specs, spec)
	}
	if len(problems.errs) == 0 && len(specs) == 0 {
		problems.add(errors.New("no claims below the header"))
	}
	if err := problems.err(); err != nil {
		return nil, err
	}
	return specs, nil
}

// atLine puts all that is wrong with a line on one.
func atLine(line int, err error) error {
	return fmt.Errorf("line %d: %s", line, strings.ReplaceAll(err.Error(), "\n", "; "))
}

func csvProblem(err error) error {
	if e, ok := errors.AsType[*csv.ParseError](err); ok {
		return fmt.Errorf("line %d: %w", e.Line, e.Err)
	}
	return err
}

func claimOfFields(f []string) (ClaimSpec, error) {
	spec := ClaimSpec{Serial: f[0], Tenant: strings.TrimSpace(f[1]), NodeName: strings.TrimSpace(f[2])}
	var errs []error
	for _, item := range listOf(f[3]) {
		key, value, ok := strings.Cut(item, "=")
		if _, twice := spec.Labels[key]; !ok || twice {
			errs = append(errs, fmt.Errorf("label %q: want key=value, each key once, and ';' between", item))
			continue
		}
		if spec.Labels == nil {
			spec.Labels = map[string]string{}
		}
		spec.Labels[key] = value
	}
	for _, item := range listOf(f[4]) {
		taint, err := enrollapi.ParseTaint(item)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		spec.Taints = append(spec.Taints, taint)
	}
	return spec, errors.Join(errs...)
}

func listOf(field string) (items []string) {
	for item := range strings.SplitSeq(field, ";") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// problemList gathers problems, and leaves out those that nobody would read.
type problemList struct {
	errs []error
	more int
}

func (p *problemList) add(err error) {
	switch {
	case err == nil:
	case len(p.errs) >= maxCSVProblems:
		p.more++
	default:
		p.errs = append(p.errs, err)
	}
}

func (p *problemList) err() error {
	if p.more > 0 {
		return errors.Join(append(p.errs, fmt.Errorf("and %d problems more", p.more))...)
	}
	return errors.Join(p.errs...)
}

// Filed is what CreateAll did.
type Filed struct {
	// Created are new, Unchanged were there with the same content.
	Created, Unchanged int
}

// CreateAll files many claims: it checks all of them first, and files none if anything is wrong with any (a claim
// that exists for something else is wrong, one with the same content is not). Then they are committed in batches of
// 250, each whole or not at all; an error from there on says how many were filed, and the same call again
// files the rest.
func (c *Claims) CreateAll(ctx context.Context, specs []ClaimSpec) (Filed, error) {
	recs, conds, filed, err := c.checkAll(ctx, specs)
	if err != nil {
		return Filed{}, err
	}
	for len(recs) > 0 {
		n, ops := 0, []store.Op(nil)
		tenants := map[string]bool{}
		for size := 0; n < len(recs) && n < claimBatch; n++ {
			val, err := json.Marshal(recs[n])
			if err != nil {
				return filed, err
			}
			if size += len(val); size > claimBatchBytes && n > 0 {
				break
			}
			ops = append(ops, store.Create(claimKey(recs[n].Serial), val))
			if !tenants[recs[n].Tenant] {
				tenants[recs[n].Tenant] = true
				ops = append(ops, conds[recs[n].Tenant])
			}
		}
		if err := c.store.Commit(ctx, ops...); err != nil {
			return filed, fmt.Errorf("%d claims are filed, %d are not (from serial %q on): %w; run it again, what is filed is passed over", filed.Created+filed.Unchanged, len(recs), recs[0].Serial, err)
		}
		filed.Created += n
		recs = recs[n:]
	}
	c.log.Info("claims created", "claims", filed.Created, "unchanged", filed.Unchanged)
	return filed, nil
}

// checkAll returns the claims that are new, and a condition for each tenant.
func (c *Claims) checkAll(ctx context.Context, specs []ClaimSpec) (recs []ClaimRecord, conds map[string]store.Op, filed Filed, err error) {
	there, err := c.List(ctx, "")
	if err != nil {
		return nil, nil, filed, err
	}
	known := map[string]ClaimRecord{}
	for _, rec := range there {
		known[rec.Serial] = rec
	}
	conds = map[string]store.Op{}
	lost := map[string]error{} // tenants that can't be used
	serials, names := map[string]int{}, map[[2]string]int{}
	var problems problemList
	for _, spec := range specs {
		rec, err := spec.record(c.now().UTC())
		if err != nil {
			problems.add(atLine(spec.line, err))
			continue
		}
		if _, ok := conds[rec.Tenant]; !ok && lost[rec.Tenant] == nil {
			conds[rec.Tenant], lost[rec.Tenant] = tenantLives(ctx, c.store, rec.Tenant, "")
		}
		if first := serials[rec.Serial]; first != 0 {
			err = fmt.Errorf("serial %q is on line %d already", rec.Serial, first)
		} else if first := names[[2]string{rec.Tenant, rec.NodeName}]; first != 0 && rec.NodeName != "" {
			err = fmt.Errorf("node name %q is on line %d already", rec.NodeName, first)
		} else if err = lost[rec.Tenant]; err == nil && rec.NodeName != "" {
			_, err = tenantLives(ctx, c.store, rec.Tenant, rec.NodeName)
		}
		serials[rec.Serial], names[[2]string{rec.Tenant, rec.NodeName}] = spec.line, spec.line
		had, exists := known[rec.Serial]
		switch {
		case err != nil:
			problems.add(atLine(spec.line, err))
		case exists && !had.says(rec):
			problems.add(atLine(spec.line, existsError(had)))
		case exists:
			filed.Unchanged++
		default:
			recs = append(recs, rec)
		}
	}
	return recs, conds, filed, problems.err()
}
