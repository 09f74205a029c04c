package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/kubetest"
)

// tenantName is the one tenant that all nodes are of.
const tenantName = "fleet"

// startTimeout bounds the start of a broker, with thousands of nodes in its store.
const startTimeout = time.Minute

// shore is the platform's side: a broker, in a process of its own, and the stand-in for its tenant's API server. The
// broker may be stopped or killed and started again; its data and addresses stay.
type shore struct {
	dir    string
	binary string // the real broker
	api    *kubetest.Server
	client *admin.Client
	cfg    *config.Broker

	broker *process // nil: it does not run
}

// newShore prepares a broker below dir that is reached at host, an IP address of this machine. It starts none. overlay is
// a file that is laid over the broker's configuration; empty: none. quick has dead sessions found within seconds: churn makes many.
func newShore(dir, binary, host, overlay string, quick bool) (*shore, error) {
	cfg := config.DefaultBroker()
	cfg.DataDir = filepath.Join(dir, "data")
	cfg.AdminSocket = filepath.Join(dir, "broker.sock")
	ports, err := freePorts(host, 3)
	if err != nil {
		return nil, err
	}
	cfg.Front.Listen = net.JoinHostPort(host, ports[0])
	cfg.Front.PublicEndpoint = cfg.Front.Listen
	cfg.Egress.Listen = net.JoinHostPort("127.0.0.1", ports[1])
	cfg.Egress.PublicEndpoint = "https://" + cfg.Egress.Listen
	cfg.HealthAddress = net.JoinHostPort("127.0.0.1", ports[2])
	// All nodes have one address here, as behind a load balancer that hides its clients: docs/configuration.md has
	// the limits of a source be those of the whole then.
	cfg.Front.Limits.AcceptRatePerSource = cfg.Front.Limits.AcceptRate
	cfg.Front.Limits.MaxUnauthenticatedPerSource = cfg.Front.Limits.MaxUnauthenticated
	if quick {
		cfg.Tunnel.HeartbeatInterval.Duration, cfg.Tunnel.HeartbeatTimeout.Duration = 2*time.Second, 6*time.Second
	}
	if overlay != "" {
		text, err := os.ReadFile(overlay)
		if err != nil {
			return nil, err
		}
		if err := yaml.UnmarshalStrict(text, cfg); err != nil {
			return nil, fmt.Errorf("%s: %w", overlay, err)
		}
	}
	text, err := yaml.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "broker.yaml"), text, 0o600); err != nil {
		return nil, err
	}
	return &shore{dir: dir, binary: binary, cfg: cfg, api: kubetest.Start(), client: admin.NewClient(cfg.AdminSocket)}, nil
}

// limits says by which bounds the broker lets the nodes in.
func (s *shore) limits() string {
	l := s.cfg.Front.Limits
	return fmt.Sprintf("acceptRate %d/s, acceptRatePerSource %d/s, maxUnauthenticated %d, maxUnauthenticatedPerSource %d",
		l.AcceptRate, l.AcceptRatePerSource, l.MaxUnauthenticated, l.MaxUnauthenticatedPerSource)
}

// freePorts finds ports that nobody listens on, by TCP or UDP. They are below the range from which the kernel takes the
// ports of connections: while the broker is down, one of its own nodes must not get them.
func freePorts(host string, n int) ([]string, error) {
	var ports []string
	for port := 21000 + os.Getpid()%4000; port < 32000 && len(ports) < n; port++ {
		at := net.JoinHostPort(host, strconv.Itoa(port))
		tcp, err := net.Listen("tcp", at)
		if err != nil {
			continue
		}
		udp, err := net.ListenPacket("udp", at)
		tcp.Close()
		if err != nil {
			continue
		}
		udp.Close()
		ports = append(ports, strconv.Itoa(port))
	}
	if len(ports) < n {
		return nil, errors.New("no free ports between 21000 and 32000 on " + host)
	}
	return ports, nil
}

// start starts the real broker and returns once it serves.
func (s *shore) start(ctx context.Context) error {
	return s.startAs(ctx, s.binary, "serve")
}

// startAs starts a broker by another command, which takes --config as `broker serve` does.
func (s *shore) startAs(ctx context.Context, argv ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("it does not serve after %s", startTimeout))
	defer cancel()
	p, err := start("the broker", filepath.Join(s.dir, "broker.log"), append(argv, "--config", filepath.Join(s.dir, "broker.yaml"))...)
	if err != nil {
		return err
	}
	serves := p.log.seen("condition=Egress status=True")
	if err := p.run(); err != nil {
		return err
	}
	s.broker = p
	return p.await(ctx, serves)
}

// stop ends the broker in the ordinary way.
func (s *shore) stop() error {
	if s.broker == nil {
		return nil
	}
	err := s.broker.stop()
	s.broker = nil
	return err
}

// kill ends the broker as kill -9 does.
func (s *shore) kill() {
	s.broker.kill()
	s.broker = nil
}

// close ends everything.
func (s *shore) close() error {
	err := s.stop()
	s.api.Close()
	return err
}

// addTenant makes the tenant known to the broker.
func (s *shore) addTenant(ctx context.Context) error {
	_, err := s.client.AddTenant(ctx, admin.TenantRequest{Name: tenantName, Kubeconfig: s.api.Kubeconfig()})
	return err
}

// metrics reads the broker's.
func (s *shore) metrics(ctx context.Context) (samples, error) {
	return scrape(ctx, s.cfg.HealthAddress)
}

// buildBroker builds the real broker from the tree that this module is in, as `make build` does.
func buildBroker(ctx context.Context, to string) error {
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/mooring-edge/mooring")
	root, err := list.Output()
	if err != nil {
		return fmt.Errorf("find the broker's source (run this in bench/, or name a binary with --broker): %w", err)
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, "./cmd/broker")
	build.Dir = strings.TrimSpace(string(root))
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the broker in %s: %w\n%s", build.Dir, err, out)
	}
	return nil
}
