package agent

import (
	"path/filepath"

	"github.com/mooring-edge/mooring/internal/durable"
)

// maxNetworksFile bounds what is read of the memory of networks, in bytes.
const maxNetworksFile = 64 << 10

// networksPath is where the tunnel's memory of networks is kept: which transport came up in which.
func (a *Agent) networksPath() string { return filepath.Join(a.cfg.StateDir, "networks.json") }

// networks reads that memory. What can't be read is forgotten: it saves a second or two at the next start, no more.
func (a *Agent) networks() []byte {
	data, err := durable.ReadFile(a.networksPath(), maxNetworksFile)
	if err != nil {
		return nil
	}
	return data
}

// rememberNetworks keeps it, where it says something else than before: with each session it is told, and flash wears out.
func (a *Agent) rememberNetworks(data []byte) {
	if err := a.write(a.networksPath(), data, 0o600); err != nil {
		a.logger.Debug("which transport works in this network can't be kept on disk", "err", err)
	}
}
