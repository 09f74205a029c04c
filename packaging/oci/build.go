package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// product is one image.
type product struct {
	name, title, description string
	pkg                      string // what is built, in the product's module
	program                  string // its name in the image
	args                     []string
	user                     string
	dirs                     []dir // beside those of every image
	platforms                []v1.Platform
}

var (
	amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = v1.Platform{OS: "linux", Architecture: "arm64"}
	armv7 = v1.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}
)

// brokerUser is nobody's on a usual machine. It is a number, so that a kubelet can tell that it is not root.
const brokerUser = 65532

var products = []product{
	{
		name: "edge-broker", title: "Mooring broker",
		description: "Lets Kubernetes API servers reach nodes behind NAT",
		pkg:         "./cmd/broker", program: "broker", args: []string{"serve"},
		user: "65532:65532",
		dirs: []dir{
			{"run/mooring", 0o755, brokerUser}, {"var/lib/mooring-broker", 0o700, brokerUser}, {"etc/mooring", 0o755, 0},
		},
		platforms: []v1.Platform{amd64, arm64},
	},
	{
		// Root: it starts the machine's kubelet, and writes below /var/lib/kubelet and /etc.
		name: "edge-agent", title: "Mooring edge agent",
		description: "Keeps a node's kubelet connected to its control plane through a broker",
		pkg:         "./cmd/edge-agent", program: "edge-agent", args: []string{"run"},
		user:      "0:0",
		dirs:      []dir{{"run/mooring", 0o755, 0}, {"var/lib/mooring", 0o700, 0}, {"etc/mooring", 0o755, 0}},
		platforms: []v1.Platform{amd64, arm64, armv7},
	},
}

// binary is a product built for one platform.
type binary struct {
	platform v1.Platform
	path     string
}

// build makes one static program. It holds no trace of the directory, the machine or the state of the checkout: the
// version that it is stamped with says which commit it is.
func build(ctx context.Context, o options, pkg string, p v1.Platform, out string) error {
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X github.com/mooring-edge/mooring/internal/version.Version=" + o.version}
	flags, err := os.ReadFile(filepath.Join(o.root, pkg, "build.flags"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	args = append(args, strings.Fields(string(flags))...)
	cmd := exec.CommandContext(ctx, "go", append(args, "-o", out, pkg)...)
	cmd.Dir = o.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=", "GOEXPERIMENT=",
		"GOOS="+p.OS, "GOARCH="+p.Architecture, "GOAMD64=v1", "GOARM64=v8.0", "GOARM=7")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s for %s: %w\n%s", pkg, p, err, text)
	}
	return nil
}
