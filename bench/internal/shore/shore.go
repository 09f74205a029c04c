// Package shore is the platform's side of a benchmark: the real broker, and a stand-in for a tenant's API server.
package shore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/bench/internal/proc"
	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/kubetest"
)

// TenantName is the one tenant that all nodes are of.
const TenantName = "fleet"

// startTimeout bounds the start of a broker, with thousands of nodes in its store.
const startTimeout = time.Minute

// Shore is the platform's side: a broker, in a process of its own, and the stand-in for its tenant's API server. The
// broker may be stopped or killed and started again; its data and addresses stay.
type Shore struct {
	Dir    string
	Binary string // the real broker
	API    *kubetest.Server
	Client *admin.Client
	Config *config.Broker

	Broker *proc.Process // nil: it does not run
}

// New prepares a broker below dir that is reached at host, an IP address of this machine. It starts none. overlay is
// a file that is laid over the broker's configuration; empty: none. quick has dead sessions found within seconds: churn makes many.
func New(dir, binary, host, overlay string, quick bool) (*Shore, error) {
	cfg := config.DefaultBroker()
	cfg.DataDir = filepath.Join(dir, "data")
	cfg.AdminSocket = filepath.Join(dir, "broker.sock")
	ports, err := FreePorts(host, 3)
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
	cfg.Egress.AcceptRatePerSource = 100_000 // a load makes more connections than the API server of one tenant may
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
	return &Shore{Dir: dir, Binary: binary, Config: cfg, API: kubetest.Start(), Client: admin.NewClient(cfg.AdminSocket)}, nil
}

// Limits says by which bounds the broker lets the nodes in.
func (s *Shore) Limits() string {
	l := s.Config.Front.Limits
	return fmt.Sprintf("acceptRate %d/s, acceptRatePerSource %d/s, maxUnauthenticated %d, maxUnauthenticatedPerSource %d",
		l.AcceptRate, l.AcceptRatePerSource, l.MaxUnauthenticated, l.MaxUnauthenticatedPerSource)
}

// FreePorts finds ports that nobody listens on, by TCP or UDP. They are below the range from which the kernel takes the
// ports of connections: while the broker is down, one of its own nodes must not get them.
func FreePorts(host string, n int) ([]string, error) {
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

// Start starts the real broker and returns once it serves.
func (s *Shore) Start(ctx context.Context) error {
	return s.StartAs(ctx, s.Binary, "serve")
}

// StartAs starts a broker by another command, which takes --config as `broker serve` does.
func (s *Shore) StartAs(ctx context.Context, argv ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("it does not serve after %s", startTimeout))
	defer cancel()
	p, err := proc.New("the broker", filepath.Join(s.Dir, "broker.log"), append(argv, "--config", filepath.Join(s.Dir, "broker.yaml"))...)
	if err != nil {
		return err
	}
	serves := p.Seen("condition=Egress status=True")
	if err := p.Run(); err != nil {
		return err
	}
	s.Broker = p
	return p.Await(ctx, serves)
}

// Stop ends the broker in the ordinary way.
func (s *Shore) Stop() error {
	if s.Broker == nil {
		return nil
	}
	err := s.Broker.Stop()
	s.Broker = nil
	return err
}

// Kill ends the broker as kill -9 does.
func (s *Shore) Kill() {
	s.Broker.Kill()
	s.Broker = nil
}

// Close ends everything.
func (s *Shore) Close() error {
	err := s.Stop()
	s.API.Close()
	return err
}

// AddTenant makes the tenant known to the broker.
func (s *Shore) AddTenant(ctx context.Context) error {
	_, err := s.Client.AddTenant(ctx, admin.TenantRequest{Name: TenantName, Kubeconfig: s.API.Kubeconfig()})
	return err
}
