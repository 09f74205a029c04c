package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/internal/agent"
	"github.com/mooring-edge/mooring/internal/config"
)

func newStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how this node is doing",
		Long: `Ask the running agent how things are: identity, tunnel, kubelet, and what is missing where something is.
A box that waits for approval shows the key and the serial number by which an operator knows it. Exits with 1 if the node is not ready.`,
		Example: `  edge-agent status
  edge-agent status -o json | jq .tunnel`,
		Args: cobra.NoArgs,
	}
	socket := socketFlag(cmd)
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := agent.FetchStatus(cmd.Context(), *socket)
		if err != nil {
			return err
		}
		if err := output(cmd.OutOrStdout(), *format, s, func(w io.Writer) { printStatus(w, s, time.Now()) }); err != nil {
			return err
		}
		if !s.Ready {
			return silentError{errors.New("not ready")}
		}
		return nil
	}
	return cmd
}

func printStatus(w io.Writer, s *agent.Status, now time.Time) {
	fmt.Fprintln(w, s.Summary)
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer tw.Flush()
	row := func(name, format string, args ...any) {
		fmt.Fprintf(tw, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	if id := s.Identity; id != nil {
		row("node", "%s (tenant %s)", id.Node, id.Tenant)
		row("identity", "%s", id.SPIFFE)
		row("key", "%s", orDash(s.Fingerprint))
		row("certificate", "expires %s", until(id.CertificateExpires, now))
	} else {
		row("node", "not enrolled")
		row("key", "%s", orDash(s.Fingerprint))
	}
	if s.Serial != "" {
		row("serial", "%s", s.Serial)
	}
	if t := s.Tunnel; t.Connected {
		row("tunnel", "%s to %s by %s, rtt %s, up %s, %d streams", t.Remote, t.Endpoint, t.Transport, orDash(t.RTT), since(t.Since, now), t.Streams)
	} else {
		row("tunnel", "down (%s)", orDash(t.Endpoint))
	}
	k := s.Kubelet
	row("kubelet", "%s (mode %s)", orDash(k.Message), k.Mode)
	fmt.Fprintln(tw)
	row("CONDITION", "STATUS\tSINCE\tMESSAGE")
	for _, c := range s.Conditions {
		row(c.Type, "%s\t%s\t%s", c.Status, since(&c.Since, now), strings.Join(strings.Fields(c.Message), " "))
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func since(t *time.Time, now time.Time) string {
	if t == nil {
		return "-"
	}
	return now.Sub(*t).Round(time.Second).String()
}

func until(t, now time.Time) string {
	left := t.Sub(now).Round(time.Minute)
	if left < 0 {
		return t.UTC().Format(time.RFC3339) + " (expired)"
	}
	return fmt.Sprintf("%s (in %s)", t.UTC().Format(time.RFC3339), left)
}

func newDoctor() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what keeps this node from working",
		Long: `Check, from this box, all that the node needs: configuration, join bundle, the way to the broker, the clock,
identity, tunnel, kubelet and container runtime. Each check says what it found and, where that is not good,
what to do next. It changes nothing. Exits with 1 if a check failed.`,
		Example: `  edge-agent doctor
  edge-agent doctor -o json`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	socket := socketFlag(cmd)
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(cmd, *path)
		if err != nil && !isConfigError(err) {
			return err
		}
		if cfg != nil && !cmd.Flags().Changed("socket") && *socket == config.DefaultAgent().Socket {
			*socket = cfg.Socket
		}
		checks := agent.Doctor(cmd.Context(), cfg, err, *socket)
		if err := output(cmd.OutOrStdout(), *format, checks, func(w io.Writer) { printChecks(w, checks) }); err != nil {
			return err
		}
		for _, c := range checks {
			if c.Result == agent.CheckFailed {
				return silentError{errors.New("a check failed")}
			}
		}
		return nil
	}
	return cmd
}

func isConfigError(err error) bool {
	var bad *config.Error
	return errors.As(err, &bad)
}

func printChecks(w io.Writer, checks []agent.Check) {
	for _, c := range checks {
		fmt.Fprintf(w, "%-4s  %s: %s\n", c.Result, c.Name, c.Found)
		if c.Next != "" {
			fmt.Fprintf(w, "      -> %s\n", c.Next)
		}
	}
}

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "Check the configuration, or print the defaults",
		Long:    "Check a configuration file, or print one with all defaults. Neither starts or changes anything.",
		Example: "  edge-agent config validate /etc/mooring/agent.yaml\n  edge-agent config print-defaults",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:     "validate [FILE]",
		Short:   "Report all problems of a configuration file",
		Long:    "Report all problems of a configuration file at once, each with its path. Exits with 2 if there are any.",
		Example: "  edge-agent config validate /etc/mooring/agent.yaml",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := config.DefaultAgentPath
			if len(args) > 0 {
				path = args[0]
			}
			if _, err := config.LoadAgent(path); err != nil {
				if config.IsAbsent(err) {
					return usageError{fmt.Errorf("no configuration file at %s", path)}
				}
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", path)
			return nil
		},
	}, &cobra.Command{
		Use:     "print-defaults",
		Short:   "Print a configuration with all defaults",
		Long:    "Print a configuration file that says what holds without one. Each key may be left out of a file.",
		Example: "  edge-agent config print-defaults > /etc/mooring/agent.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := config.Marshal(config.DefaultAgent())
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	})
	return cmd
}

// format is how data is printed; as a flag, it refuses others before anything is done.
type format string

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }
func (f *format) Set(s string) error {
	switch s {
	case "table", "json", "yaml":
		*f = format(s)
		return nil
	}
	return errors.New("want table, json or yaml")
}

// outputFlag adds -o to a command that prints data.
func outputFlag(cmd *cobra.Command) *format {
	f := format("table")
	cmd.Flags().VarP(&f, "output", "o", "table, json or yaml")
	return &f
}

// output prints data in the chosen format.
func output(w io.Writer, f format, data any, table func(io.Writer)) error {
	switch f {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(data)
	case "yaml":
		out, err := yaml.Marshal(data)
		if err != nil {
			return err
		}
		_, err = w.Write(out)
		return err
	}
	table(w)
	return nil
}
