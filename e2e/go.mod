// The end-to-end tests and the demo. A module of its own, so that what they need never weighs on the
// product's go.mod; the real Kubernetes that they run is pinned in tools/go.mod.
module github.com/mooring-edge/mooring/e2e

go 1.26.0

replace github.com/mooring-edge/mooring => ../

require golang.org/x/sys v0.49.0
