package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// output is the -o flag of commands that print data.
type output struct{ format string }

// addOutput gives a command its -o flag; the first format is the default.
func addOutput(c *cobra.Command, formats ...string) *output {
	return addFormat(c, "output", formats...)
}

// addFormat is addOutput with another long name.
func addFormat(c *cobra.Command, name string, formats ...string) *output {
	o := &output{}
	c.Flags().StringVarP(&o.format, name, "o", formats[0], "output format: "+strings.Join(formats, ", "))
	c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	previous := c.PreRunE
	c.PreRunE = func(cmd *cobra.Command, args []string) error {
		for _, f := range formats {
			if o.format == f {
				if previous != nil {
					return previous(cmd, args)
				}
				return nil
			}
		}
		return fmt.Errorf("unknown output format %q: want one of %s", o.format, strings.Join(formats, ", "))
	}
	return o
}

// print writes v as JSON or YAML, or else lets table write it for a person.
func (o *output) print(w io.Writer, v any, table func(w io.Writer)) error {
	switch o.format {
	case "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	table(tw)
	return tw.Flush()
}

// row writes one line of a table.
func row(w io.Writer, cells ...string) {
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// age is a time as kubectl shows it: how long ago, in one or two units.
func age(t time.Time) string { return span(time.Since(t)) }

func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}

// completeFirst offers, for the first argument alone, what list finds at the running broker.
func completeFirst(list func(*cobra.Command) ([]string, error)) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		found, err := list(c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}
