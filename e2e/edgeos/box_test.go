package edgeos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
	"github.com/mooring-edge/mooring/e2e/internal/vm"
)

// bootLimit is how long a box may take from power-on to Ready: three times what it takes when four machines share two cores.
const bootLimit = 12 * time.Minute

// lookEvery is how often a state is asked for of which nobody tells: each look takes time from the machines.
const lookEvery = 2 * time.Second

// box is a machine with the image, at a site of its own.
type box struct {
	*vm.Machine
	s    *suite
	site *harness.Site
	node string // its name in the tenant
	boot string // the kernel's ID of the boot that was seen last
}

// plug puts a box with that disk at a site; it is off. A site has one at a time.
func (s *suite) plug(site, serial, disk string) (*box, error) {
	return s.plugWith(1, site, serial, disk)
}

// plugWith is plug for a box with several CPUs.
func (s *suite) plugWith(cpus int, site, serial, disk string) (*box, error) {
	at := s.sites[site]
	m, err := vm.New(vm.Config{
		Dir: filepath.Join(s.env.Dir(), "vm", site), Image: disk, Serial: serial, Enter: at.LAN.Argv, CPUs: cpus,
		ConsoleLog: filepath.Join(s.env.Dir(), "logs", "console-"+site+".log"),
	})
	if err != nil {
		return nil, err
	}
	s.top.Cleanup(func() {
		if err := m.Close(); err != nil {
			s.top.Error(err)
		}
	})
	return &box{Machine: m, s: s, site: at, node: strings.ReplaceAll(nodePattern, "{serial}", strings.ToLower(serial))}, nil
}

// userData is what `broker token create --format cloud-init` prints.
func (s *suite) userData(description string, uses int) (string, error) {
	return s.acme.Token(s.ctx, "--format", "cloud-init", "--uses", strconv.Itoa(uses), "--node-name", nodePattern, "--description", description)
}

// insert gives the box its seed. Its host name is another than the node's, which has its name by the serial number.
func (b *box) insert(userData string) error {
	return b.Insert(vm.Seed{UserData: userData, Hostname: "box-" + b.node, InstanceID: "i-" + b.node})
}

// since is how long ago the box was switched on.
func (b *box) since() time.Duration { return time.Since(b.Since()) }

// firstReady returns when a node that was never there is Ready, and how long after power-on that was.
func (b *box) firstReady(ctx context.Context) (time.Duration, error) {
	ctx, cancel := b.Alive(ctx)
	defer cancel()
	for _, what := range []string{"create", "condition=Ready"} {
		limit := bootLimit - b.since()
		if _, err := b.s.acme.Kubectl(ctx, "wait", "node/"+b.node, "--for="+what, "--timeout="+limit.String()); err != nil {
			return 0, fmt.Errorf("%s: %w (%w); the end of its console:\n%s", b.node, err, context.Cause(ctx), b.tail(25))
		}
	}
	return b.since(), nil
}

// tail is the end of the box's console.
func (b *box) tail(lines int) string {
	var out strings.Builder
	for _, l := range b.Console.From(max(0, b.Console.Mark()-lines)) {
		fmt.Fprintf(&out, "    %6.1f %s\n", l.At.Sub(b.Since()).Seconds(), l.Text)
	}
	return out.String()
}

// await asks again and again until the box is ready for what comes next, or has gone off.
func (b *box) await(t *testing.T, what string, limit time.Duration, ready func(context.Context) error) time.Duration {
	t.Helper()
	ctx, cancel := b.Alive(b.s.ctx)
	defer cancel()
	took, err := b.s.env.Wait(ctx, what+" of "+b.node, limit, slowly(ready))
	if err != nil {
		t.Fatalf("%v (%v); the end of its console:\n%s", err, context.Cause(ctx), b.tail(25))
	}
	return took
}

// slowly has a look take lookEvery at least.
func slowly(ready func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := ready(ctx)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(lookEvery):
			}
		}
		return err
	}
}

// console waits for a line of the box's console after mark.
func (b *box) console(t *testing.T, mark int, limit time.Duration, want string) (vm.Line, int) {
	t.Helper()
	ctx, cancel := b.Alive(b.s.ctx)
	defer cancel()
	ctx, stop := context.WithTimeout(ctx, limit)
	defer stop()
	line, next, err := b.Console.Wait(ctx, mark, regexp.MustCompile(want))
	if err != nil {
		t.Fatalf("%s: %v; the end of its console:\n%s", b.node, err, b.tail(40))
	}
	return line, next
}

// welcome is what a boot of a version says on the console, once its root is mounted.
func welcome(version string) string { return "Welcome to .*edge-os " + version + `\b` }

// service is the pod by which the box is looked after: root among all of the machine's processes.
const service = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s}
spec:
  nodeSelector: {kubernetes.io/hostname: %[2]s}
  tolerations: [{operator: Exists}]
  hostPID: true
  terminationGracePeriodSeconds: 1
  containers:
  - name: service
    image: mooring.test/busybox:1
    imagePullPolicy: Never
    securityContext: {privileged: true}
    command: [sh, -c, 'echo "this is $(cat /machine-id)"; exec sleep 1000000000']
    volumeMounts: [{name: machine-id, mountPath: /machine-id, readOnly: true}]
  volumes: [{name: machine-id, hostPath: {path: /etc/machine-id, type: File}}]
`

func (b *box) pod() string { return "service-" + b.node }

// inside runs a command on the box, as root, through the tunnel.
func (b *box) inside(ctx context.Context, argv ...string) (string, error) {
	return b.s.acme.Kubectl(ctx, append([]string{"exec", b.pod(), "--", "nsenter", "-t", "1", "-m", "-u", "-i", "-n", "-p", "--",
		"/usr/bin/env", "PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8"}, argv...)...)
}

// ask is inside that ends the test on an error.
func (b *box) ask(t *testing.T, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.s.ctx, 3*time.Minute)
	defer cancel()
	out, err := b.inside(ctx, argv...)
	must(t, err)
	return strings.TrimSpace(out)
}

// bootID is the kernel's name for this boot.
const bootID = "/proc/sys/kernel/random/boot_id"

// back waits until the box, which has started again, is Ready and can be entered through the tunnel. It returns how long
// after power-on that was.
func (b *box) back(t *testing.T, restarted time.Time, limit time.Duration) time.Duration {
	t.Helper()
	b.await(t, "the return", limit, func(ctx context.Context) error { return b.s.acme.NodeBack(ctx, b.node, restarted) })
	at := b.since()
	b.await(t, "the pod's return", 3*time.Minute, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		id, err := b.inside(ctx, "cat", bootID)
		if err == nil && strings.TrimSpace(id) == b.boot {
			err = errors.New("it has not started again")
		}
		if err == nil {
			b.boot = strings.TrimSpace(id)
		}
		return err
	})
	return at
}

// record is what the broker knows of the box.
type record struct {
	Name, KeyHash, State string
	Connected            bool
	Boxes                []struct{ ID, RemoteAddr string }
}

func (b *box) record(ctx context.Context) (r record, err error) {
	out, err := b.s.platform.BrokerCommand(ctx, "node", "show", "acme/"+b.node, "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &r)
	}
	return r, err
}

// token is what the broker knows of a token.
type token struct {
	ID, Description string
	UsedBy          []string
}

func (s *suite) token(description string) (token, error) {
	out, err := s.platform.BrokerCommand(s.ctx, "token", "list", "-o", "json")
	if err != nil {
		return token{}, err
	}
	var tokens []token
	if err := json.Unmarshal([]byte(out), &tokens); err != nil {
		return token{}, err
	}
	for _, token := range tokens {
		if token.Description == description {
			return token, nil
		}
	}
	return token{}, fmt.Errorf("no token %q in %s", description, out)
}
