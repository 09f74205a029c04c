// Package version holds the version that a build was stamped with.
//
// It is not a place for feature negotiation: the tunnel's hello does that.
package version

import (
	"fmt"
	"runtime"
)

// Version is set at link time:
//
//	go build -ldflags "-X github.com/mooring-edge/mooring/internal/version.Version=v1.2.3"
var Version = "v0.0.0-dev"

// Info is what `version -o json` prints.
type Info struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Get returns the build's version, compiler and platform.
func Get() Info {
	return Info{Version: Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
}

// String is the one-line form, e.g. "v0.1.0 (go1.26.8 linux/amd64)".
func (i Info) String() string {
	return fmt.Sprintf("%s (%s %s)", i.Version, i.Go, i.Platform)
}
