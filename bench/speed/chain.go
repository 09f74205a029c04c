package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/mooring-edge/mooring/bench/internal/proc"
	"github.com/mooring-edge/mooring/bench/internal/shore"
)

// chain is a way from the load to the target, which runs.
type chain struct {
	name      string // in tables
	transport string // between near and far end
	note      string // what is not as with the others
	dial      dialFunc
	near, far []*proc.Process // on the platform's side, in the order of the way; on the node's
	target    *proc.Process   // set by measure
}

// startTimeout bounds the start of one program.
const startTimeout = 30 * time.Second

// bed is where chains run: a directory, certificates, a target, and the programs that were started.
type bed struct {
	ctx     context.Context
	dir     string
	self    string // this program
	certs   certs
	target  string          // host:port
	given   map[string]bool // ports: FreePorts finds the same ones until somebody listens
	started []*proc.Process
	stops   []func() error // what else there is to end, last first
}

func newBed(ctx context.Context, dir string) (*bed, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b := &bed{ctx: ctx, dir: dir, self: self, given: map[string]bool{}}
	if b.certs, err = makeCerts(dir); err != nil {
		return nil, err
	}
	if b.target, err = b.address(); err != nil {
		return nil, err
	}
	_, err = b.run("target", "serves", b.self, "target", "--listen", b.target)
	return b, err
}

// run starts a program and returns once its log says so.
func (b *bed) run(name, until string, argv ...string) (*proc.Process, error) {
	p, err := proc.New(name, filepath.Join(b.dir, name+".log"), argv...)
	if err != nil {
		return nil, err
	}
	seen := p.Seen(until)
	if err := p.Run(); err != nil {
		return nil, err
	}
	b.started = append(b.started, p)
	ctx, cancel := context.WithTimeoutCause(b.ctx, startTimeout, fmt.Errorf("it has not said %q after %s", until, startTimeout))
	defer cancel()
	return p, p.Await(ctx, seen)
}

// address is one on the loopback that nobody listens on.
func (b *bed) address() (string, error) {
	ports, err := shore.FreePorts("127.0.0.1", len(b.given)+1)
	if err != nil {
		return "", err
	}
	for _, p := range ports {
		if !b.given[p] {
			b.given[p] = true
			return "127.0.0.1:" + p, nil
		}
	}
	return "", errors.New("no free port")
}

// close ends all that was started, the last one first.
func (b *bed) close() error {
	var errs []error
	for i := len(b.stops) - 1; i >= 0; i-- {
		errs = append(errs, b.stops[i]())
	}
	for i := len(b.started) - 1; i >= 0; i-- {
		b.started[i].Kill() // there is nothing to lose
	}
	return errors.Join(errs...)
}

// direct has nothing between load and target.
func (b *bed) direct() (*chain, error) {
	return &chain{name: "direct", transport: "TCP", dial: plainDial(b.target)}, nil
}

// bare is a chain that is no product.
func (b *bed) bare(name, over, transport string) (*chain, error) {
	north, err := b.address()
	if err != nil {
		return nil, err
	}
	south, err := b.address()
	if err != nil {
		return nil, err
	}
	argv := func(role string, more ...string) []string {
		return append([]string{b.self, role, "--over", over, "--south", south, "--certs", b.dir}, more...)
	}
	nearArgs, farArgs := argv("near", "--north", north), argv("far", "--target", b.target)
	var near, far *proc.Process
	if over == overLegs {
		if far, err = b.run(over+"-far", "waits", farArgs...); err != nil {
			return nil, err
		}
		near, err = b.run(over+"-near", "serves", nearArgs...)
	} else {
		if near, err = b.run(over+"-near", "waits", nearArgs...); err != nil {
			return nil, err
		}
		far, err = b.run(over+"-far", "joined", farArgs...)
	}
	if err != nil {
		return nil, err
	}
	client, _, err := b.certs.tls()
	if err != nil {
		return nil, err
	}
	return &chain{
		name: name, transport: transport, dial: mtlsConnect(north, b.target, client), near: []*proc.Process{near}, far: []*proc.Process{far},
	}, nil
}
