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
	"time"

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
	claimBatch      = 60
	claimBatchBytes = 1 << 20
	// maxCSVProblems bounds the answer to a file that is something else altogether.
	maxCSVProblems = 50
)

var claimColumns = []string{"serial", "tenant", "node-name", "labels", "taints"}

// ParseClaims reads claims from CSV (RFC 4180) with the header serial,tenant,node-name,labels,taints. Labels are
// "key=value", taints "key=value:Effect" or "key:Effect", several with ';' between. The error holds all that is wrong
// with their form, each with its line; then there are no claims.
func ParseClaims(data []byte) ([]ClaimSpec, error) {
	var problems problemList
	specs := parseClaims(data, &problems)
	for _, spec := range specs {
		if _, err := spec.record(time.Time{}); err != nil {
			problems.add(spec.line, err)
		}
	}
	if err := problems.err(); err != nil {
		return nil, err
	}
	return specs, nil
}

// parseClaims returns the claims whose lines can be read, and adds what is wrong with the others.
func parseClaims(data []byte, problems *problemList) (specs []ClaimSpec) {
	if len(data) > MaxClaimsCSV {
		problems.add(0, fmt.Errorf("%d bytes of claims, at most %d are taken: split the file", len(data), MaxClaimsCSV))
		return nil
	}
	r := csv.NewReader(strings.NewReader(strings.TrimPrefix(string(data), "\ufeff"))) // spreadsheets write a BOM
	r.FieldsPerRecord = -1                                                            // said in our own words
	header, err := r.Read()
	if err != nil && !errors.Is(err, io.EOF) {
		problems.addCSV(err)
		return nil
	}
	if !slices.Equal(header, claimColumns) {
		problems.add(1, fmt.Errorf("want the header %q, got %q", strings.Join(claimColumns, ","), cut(strings.Join(header, ","), 100)))
		return nil
	}
	for n := 0; ; n++ {
		fields, err := r.Read()
		if errors.Is(err, io.EOF) {
			if n == 0 {
				problems.add(1, errors.New("no claims below the header"))
			}
			return specs
		}
		if err != nil {
			problems.addCSV(err) // where the next line begins is not known then
			return specs
		}
		line, _ := r.FieldPos(0)
		switch {
		case n == MaxClaimsAtOnce:
			problems.add(line, fmt.Errorf("more than %d claims: split the file", MaxClaimsAtOnce))
			return specs
		case len(fields) != len(claimColumns):
			problems.add(line, fmt.Errorf("%d fields, want %d (%s)", len(fields), len(claimColumns), strings.Join(claimColumns, ",")))
			continue
		}
		spec, err := claimOfFields(fields)
		if spec.line = line; err != nil {
			problems.add(line, err)
		}
		specs = append(specs, spec)
	}
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

// problemList gathers problems by line, and leaves out those that nobody would read.
type problemList struct {
	found []lineProblem
	more  int
}

type lineProblem struct {
	line int // 0 = of the whole
	err  error
}

func (p *problemList) add(line int, err error) {
	if len(p.found) >= maxCSVProblems {
		p.more++
		return
	}
	p.found = append(p.found, lineProblem{line, err})
}

func (p *problemList) addCSV(err error) {
	if e, ok := errors.AsType[*csv.ParseError](err); ok {
		p.add(e.Line, e.Err)
		return
	}
	p.add(0, err)
}

// err is all of it, one problem a line.
func (p *problemList) err() error {
	if len(p.found) == 0 {
		return nil
	}
	slices.SortStableFunc(p.found, func(a, b lineProblem) int { return a.line - b.line })
	var lines []string
	for _, f := range p.found {
		text := strings.ReplaceAll(f.err.Error(), "\n", "; ")
		if f.line > 0 {
			text = fmt.Sprintf("line %d: %s", f.line, text)
		}
		lines = append(lines, text)
	}
	if p.more > 0 {
		lines = append(lines, fmt.Sprintf("and %d problems more", p.more))
	}
	return errors.New(strings.Join(lines, "\n"))
}

// Filed is what CreateAll did.
type Filed struct {
	// Created are the new ones.
	Created []ClaimRecord
	// Unchanged is how many were there with the same content.
	Unchanged int
}

// CreateCSV files the claims of a CSV file (see ParseClaims), all with this approval ("" = auto). All of it is checked
// first, and nothing is filed if anything is wrong with any (a claim that exists for something else is wrong, one
// with the same content is not); the error holds all problems. Then they are committed in batches of 60, each whole
// or not at all; an error from there on says how many are filed, and the same call again files the rest.
func (c *Claims) CreateCSV(ctx context.Context, data []byte, approval string) (Filed, error) {
	var problems problemList
	specs := parseClaims(data, &problems)
	for i := range specs {
		specs[i].Approval = approval
	}
	recs, conds, filed, err := c.checkAll(ctx, specs, &problems)
	if err = errors.Join(err, problems.err()); err != nil {
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
			return filed, fmt.Errorf("%d claims are filed, %d are not (from serial %q on): %w; run it again, what is filed is passed over", len(filed.Created)+filed.Unchanged, len(recs), recs[0].Serial, err)
		}
		filed.Created = append(filed.Created, recs[:n]...)
		recs = recs[n:]
	}
	c.log.Info("claims created", "claims", len(filed.Created), "unchanged", filed.Unchanged)
	return filed, nil
}

// checkAll returns the claims that are new, and a condition for each tenant.
func (c *Claims) checkAll(ctx context.Context, specs []ClaimSpec, problems *problemList) (recs []ClaimRecord, conds map[string]store.Op, filed Filed, err error) {
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
	for _, spec := range specs {
		rec, err := spec.record(c.now().UTC())
		if err != nil {
			problems.add(spec.line, err)
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
			problems.add(spec.line, err)
		case exists && !had.says(rec):
			problems.add(spec.line, existsError(had))
		case exists:
			filed.Unchanged++
		default:
			recs = append(recs, rec)
		}
	}
	return recs, conds, filed, nil
}
