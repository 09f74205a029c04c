package main

import (
	"errors"
	"os/exec"
	"strconv"
	"testing"

	"github.com/spf13/cobra"
)

func exitCode(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return strconv.Itoa(exit.ExitCode())
	}
	return err.Error()
}

// TestEveryCommandExplainsItself: a person who is on the box for the first time has only --help.
func TestEveryCommandExplainsItself(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "help" {
			return
		}
		if c.Short == "" || c.Long == "" || c.Example == "" {
			t.Errorf("%s: short %t, long %t, example %t", c.CommandPath(), c.Short != "", c.Long != "", c.Example != "")
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
}
