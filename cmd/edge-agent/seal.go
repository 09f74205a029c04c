package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/mooring-edge/mooring/internal/agent"
)

func newSeal() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "seal",
		Short: "Take the secret that let this box in off its disk",
		Long: `Remove the join bundle whose token let this box in, and overwrite the token's secret in what cloud-init keeps
of its user-data (/var/lib/cloud, /run/cloud-init, its logs); cloud-init finds all else as it was. The packages' unit
edge-agent-seal.service runs it once the box is enrolled, and at each boot, since cloud-init writes its user-data anew.

A bundle with another token is left alone: it lets a node in again that was removed. What is outside of the box (a
medium with user-data, firmware variables, a metadata service) is not reached.

It fails as long as the box is not enrolled. Run again, it does what there is left to do.`,
		Example: `  edge-agent seal
  systemctl start edge-agent-seal      # the same, as the packages do it`,
		Args: cobra.NoArgs,
	}
	path := configFlag(cmd)
	root := cmd.Flags().String("root", "", "look for cloud-init's files below this directory")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(cmd, *path)
		if err != nil {
			return err
		}
		said, err := agent.Seal(cfg, *root)
		for _, line := range said {
			fmt.Fprintln(cmd.OutOrStdout(), line)
		}
		return err
	}
	return cmd
}
