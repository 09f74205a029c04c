// Command oci makes the container images of the broker and the agent from the tree, without a container engine: for
// each an OCI image layout in a tar file, one image a platform under one index. `ctr images import`, `skopeo copy
// oci-archive:...`, `podman load` and `docker load` (25 and later) take it.
//
// The same commit gives the same bytes, wherever and whenever it is built with the Go that go.mod names: binaries are
// built with -trimpath and without cgo, times are SOURCE_DATE_EPOCH (the commit's), owners and modes are fixed here,
// and the root certificates come from a Go module that go.sum pins, not from the machine. It pushes nothing.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "oci:", err)
		os.Exit(1)
	}
}

// options are what one call makes.
type options struct {
	root     string    // of the repository
	out      string    // the directory for the images
	registry string    // goes before the image's name in its reference
	version  string    // the tag, and what the programs say
	revision string    // the commit
	created  time.Time // of everything in the images
	only     string    // this product alone; empty = all
	platform string    // this platform alone; empty = all of the product's
}

func run(ctx context.Context, args []string) error {
	var o options
	epoch := os.Getenv("SOURCE_DATE_EPOCH")
	f := flag.NewFlagSet("oci", flag.ContinueOnError)
	f.StringVar(&o.root, "root", "../..", "the repository")
	f.StringVar(&o.out, "out", "../../bin/images", "the directory to write to; made if absent")
	f.StringVar(&o.registry, "registry", "mooring-edge", "what comes before the image's name")
	f.StringVar(&o.version, "version", "", "the version (required)")
	f.StringVar(&o.revision, "revision", "", "the commit, for the labels")
	f.StringVar(&epoch, "epoch", epoch, "time of all files, in seconds since 1970; SOURCE_DATE_EPOCH if not given")
	f.StringVar(&o.only, "only", "", "make this image alone: edge-broker or edge-agent")
	f.StringVar(&o.platform, "platform", "", "make it for this platform alone, such as linux/arm64")
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.version == "" {
		return fmt.Errorf("--version is required")
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return fmt.Errorf("--epoch or SOURCE_DATE_EPOCH: want seconds since 1970, got %q", epoch)
	}
	o.created = time.Unix(seconds, 0).UTC()
	made := 0
	for _, p := range products {
		if o.only != "" && o.only != p.name {
			continue
		}
		path, err := p.make(ctx, o)
		if err != nil {
			return fmt.Errorf("make the image of %s: %w", p.name, err)
		}
		fmt.Println(path)
		made++
	}
	if made == 0 {
		return fmt.Errorf("--only: want edge-broker or edge-agent, got %q", o.only)
	}
	return nil
}

// make builds the product for its platforms and writes one archive.
func (p product) make(ctx context.Context, o options) (string, error) {
	scratch, err := os.MkdirTemp("", "mooring-oci-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	var built []binary
	for _, pl := range p.platforms {
		if o.platform != "" && o.platform != pl.String() {
			continue
		}
		path := filepath.Join(scratch, "program-"+strings.ReplaceAll(pl.String(), "/", "-"))
		if err := build(ctx, o, p.pkg, pl, path); err != nil {
			return "", err
		}
		built = append(built, binary{pl, path})
	}
	if len(built) == 0 {
		return "", fmt.Errorf("--platform: %s is not made for %q", p.name, o.platform)
	}
	index, err := p.index(o, built)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(o.out, p.name+"-"+o.version+".tar")
	return path, writeArchive(path, index, p.reference(o), o)
}
