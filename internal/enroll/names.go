package enroll

import (
	"crypto/sha256"
	"encoding/hex"
)

// bootstrapGroup is the group of all bootstrap tokens that a broker minted. Each token has one further group,
// that of its node.
const bootstrapGroup = "system:bootstrappers:mooring"

// nodeHash stands for a node's name where only 63 characters, or no dots, are allowed.
func nodeHash(node string) string {
	sum := sha256.Sum256([]byte(node))
	return hex.EncodeToString(sum[:])[:32]
}

// nodeGroup is the group of bootstrap tokens that were minted for this node.
func nodeGroup(node string) string { return bootstrapGroup + ":" + nodeHash(node) }
