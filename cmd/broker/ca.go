package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/pki"
)

func newCA(client func() *admin.Client) *cobra.Command {
	return group("ca", "Look at and rotate the broker's CA", newCAStatus(client), newCARotate(client), newCARetire(client))
}

func newCAStatus(client func() *admin.Client) *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the broker's CAs, and how far a rotation is",
		Example: `  broker ca status
  broker ca status -o json`,
		Args: cobra.NoArgs,
	}
	out := addOutput(c, "table", "json", "yaml")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := client().CA(c.Context())
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), s, func(w io.Writer) { caTable(w, s) })
	}
	return c
}

func caTable(w io.Writer, s admin.CAStatus) {
	row(w, "ROLE", "CA", "UNTIL")
	for _, ca := range s.CAs {
		row(w, ca.Role, ca.Hash, ca.NotAfter.UTC().Format(time.RFC3339))
	}
	row(w)
	row(w, "Phase:", s.Phase)
	row(w, "Nodes:", fmt.Sprintf("%d enrolled, %d of them with no certificate of the issuer", s.Enrolled, s.Behind))
	row(w, "Connected:", fmt.Sprintf("%d, of them %d trust the newest CA, %d have a certificate of the issuer", s.Connected, s.Trusting, s.Renewed))
	if len(s.WaitingFor) > 0 {
		row(w, "Waiting for:", admin.Sample(s.WaitingFor))
	}
	for _, e := range s.EgressBehind {
		row(w, "API servers:", fmt.Sprintf("those of %s hold a certificate of the previous CA, until %s: broker egress issue --tenant %s",
			e.Tenant, e.NotAfter.UTC().Format(time.RFC3339), e.Tenant))
	}
	switch pki.Phase(s.Phase) {
	case pki.PhaseAdd:
		row(w, "Next:", "broker ca rotate, which goes on where it was")
	case pki.PhaseSwitch:
		row(w, "Next:", "broker ca retire, when all that matters has a certificate of the issuer")
	}
}

func newCARotate(client func() *admin.Client) *cobra.Command {
	r := &rotation{interval: time.Second}
	c := &cobra.Command{
		Use:   "rotate",
		Short: "Replace the broker's CA, with no session cut",
		Long: `Replace the broker's CA: make the next one, wait until all connected nodes hold it, have it issue,
and wait until they have certificates of it. No session is cut. The key of the old CA is destroyed
when the new one issues.

Nodes that are off meanwhile come back unattended: the broker shows a certificate by which the old
CA vouches for the new one. A rotation that was interrupted goes on where it was when this is run again.
It is finished by ` + "`broker ca retire`" + `.`,
		Example: `  broker ca rotate
  broker ca rotate --timeout 1h`,
		Args: cobra.NoArgs,
	}
	out := addOutput(c, "table", "json", "yaml")
	c.Flags().DurationVar(&r.timeout, "timeout", 15*time.Minute, "how long to wait for connected nodes, in each phase")
	c.Flags().BoolVar(&r.force, "force", false, "do not wait for connected nodes; they catch up by themselves")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if r.timeout <= 0 {
			return usageError{fmt.Errorf("timeout %s: want more than zero (--force does not wait)", r.timeout)}
		}
		r.client, r.progress = client(), c.ErrOrStderr()
		s, err := r.run(c.Context())
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), s, func(w io.Writer) { caTable(w, s) })
	}
	return c
}

// rotation is a run of `broker ca rotate`. All its state is the broker's.
type rotation struct {
	client   *admin.Client
	progress io.Writer
	interval time.Duration // between two looks
	timeout  time.Duration // of each wait
	force    bool
}

func (r *rotation) say(format string, args ...any) { fmt.Fprintf(r.progress, format+"\n", args...) }

// run goes on from the phase that it finds.
func (r *rotation) run(ctx context.Context) (admin.CAStatus, error) {
	s, err := r.client.CA(ctx)
	if err != nil {
		return s, err
	}
	if s.Phase == string(pki.PhaseSettled) {
		if s, err = r.client.StepCA(ctx, "add", admin.CAStepRequest{}); err != nil {
			return s, err
		}
		r.say("the next CA is made, and every connected node is told: %s", s.CAs[1].Hash)
	}
	if s.Phase == string(pki.PhaseAdd) {
		if s, err = r.switchOver(ctx); err != nil {
			return s, err
		}
		r.say("the next CA issues now; the key of the one before is destroyed")
	}
	if !r.force {
		s, err = r.wait(ctx, "have a certificate of the new CA", func(s admin.CAStatus) int { return s.Renewed })
		if err != nil {
			return s, err
		}
	}
	r.say("rotated: nodes that are off catch up when they come back; finish with `broker ca retire`")
	return s, nil
}

// switchOver waits for the nodes and switches. A node that comes in between has the broker refuse, and is waited for.
func (r *rotation) switchOver(ctx context.Context) (admin.CAStatus, error) {
	for {
		if !r.force {
			if s, err := r.wait(ctx, "hold the next CA", func(s admin.CAStatus) int { return s.Trusting }); err != nil {
				return s, err
			}
		}
		s, err := r.client.StepCA(ctx, "switch", admin.CAStepRequest{Force: r.force})
		if refused, ok := errors.AsType[*admin.Error](err); ok && refused.Status == http.StatusConflict && !r.force {
			if now, err := r.client.CA(ctx); err == nil && now.Phase == string(pki.PhaseAdd) {
				continue
			}
		}
		return s, err
	}
}

// wait returns when the phase waits for no connected node any more.
func (r *rotation) wait(ctx context.Context, what string, done func(admin.CAStatus) int) (admin.CAStatus, error) {
	late := time.NewTimer(r.timeout)
	defer late.Stop()
	tick := time.NewTicker(r.interval)
	defer tick.Stop()
	said := ""
	for {
		s, err := r.client.CA(ctx)
		if err != nil {
			return s, err
		}
		line := fmt.Sprintf("%d of %d connected nodes %s", done(s), s.Connected, what)
		if line != said {
			r.say("%s", line)
			said = line
		}
		if len(s.WaitingFor) == 0 {
			return s, nil
		}
		select {
		case <-tick.C:
		case <-late.C:
			return s, fmt.Errorf("after %s only %s; missing: %s. Run `broker ca rotate` again to go on waiting, or with --force to go on without them: "+
				"they catch up by themselves", r.timeout, line, admin.Sample(s.WaitingFor))
		case <-ctx.Done():
			return s, fmt.Errorf("interrupted; `broker ca rotate` goes on from here: %w", ctx.Err())
		}
	}
}

func newCARetire(client func() *admin.Client) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "retire",
		Short: "Finish a rotation: stop trusting the previous CA",
		Long: `Finish a rotation of the CA: certificates of the previous CA are not accepted any more. It refuses while
connected nodes or the API servers of a tenant hold one. Nodes that are off renew theirs by their key
when they come back.`,
		Example: `  broker ca retire`,
		Args:    cobra.NoArgs,
	}
	out := addOutput(c, "table", "json", "yaml")
	c.Flags().BoolVar(&force, "force", false, "retire it although API servers or connected nodes hold its certificates; those API servers lose their nodes")
	c.RunE = func(c *cobra.Command, _ []string) error {
		s, err := client().StepCA(c.Context(), "retire", admin.CAStepRequest{Force: force})
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), s, func(w io.Writer) { caTable(w, s) })
	}
	return c
}
