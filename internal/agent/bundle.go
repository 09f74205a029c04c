package agent

import (
	"fmt"
	"path/filepath"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/pkg/join"
)

const (
	// credentialName is the name of the service manager's credential (systemd.exec(5)) that may hold the join bundle.
	credentialName = "mooring.join"
	// unitCredentials is where systemd puts those of the packages' unit.
	unitCredentials = "/run/credentials/edge-agent.service"
)

// findBundle reads the join bundle from the configured file or, where that is absent, from the credential in a directory
// (empty: there is none). It tells which it was. The file goes first: it is what a person can change.
func findBundle(cfg *config.Agent, credentials string) (join.Bundle, string, error) {
	path := cfg.JoinFile
	b, err := config.LoadJoinBundle(path)
	if config.IsAbsent(err) && credentials != "" {
		path = filepath.Join(credentials, credentialName)
		b, err = config.LoadJoinBundle(path)
	}
	if config.IsAbsent(err) {
		return join.Bundle{}, "", fmt.Errorf("no join bundle at %s: make one with `broker token create` and put it there", cfg.JoinFile)
	}
	if err != nil {
		return join.Bundle{}, "", err
	}
	return BundleOf(b), path, nil
}
