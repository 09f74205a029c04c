package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/mooring-edge/mooring/bench/internal/proc"
	"github.com/mooring-edge/mooring/bench/internal/shore"
)

// peerNote is for those that have no TLS between load and near end.
const peerNote = "the load dials in the clear"

// peerPrograms are built from the module peers.
var peerPrograms = map[string]string{
	"frps": "github.com/fatedier/frp/cmd/frps", "frpc": "github.com/fatedier/frp/cmd/frpc", "chisel": "github.com/jpillora/chisel",
	"proxy-server": "sigs.k8s.io/apiserver-network-proxy/cmd/server", "proxy-agent": "sigs.k8s.io/apiserver-network-proxy/cmd/agent",
	"remotedialer": "./remotedialer",
}

// peers starts those that are asked for.
func (b *bed) peers(bin string, wanted func(string) bool, say func(string, ...any)) (all []*chain, err error) {
	for _, p := range []struct {
		name     string
		programs []string
		start    func(bin string) (*chain, error)
	}{
		{"konnectivity, HTTPConnect/mTLS", []string{"proxy-server", "proxy-agent"}, b.konnectivityConnect},
		{"konnectivity, gRPC/UDS", []string{"proxy-server", "proxy-agent"}, b.konnectivityGRPC},
		{"frp", []string{"frps", "frpc"}, func(bin string) (*chain, error) { return b.frp(bin, "tcp") }},
		{"frp", []string{"frps", "frpc"}, func(bin string) (*chain, error) { return b.frp(bin, "quic") }},
		{"chisel", []string{"chisel"}, b.chisel},
		{"remotedialer", []string{"remotedialer"}, b.remotedialer},
	} {
		if !wanted(p.name) {
			continue
		}
		for _, program := range p.programs {
			if err := b.buildPeer(program, filepath.Join(bin, program), say); err != nil {
				return nil, err
			}
		}
		say("starting %s", p.name)
		c, err := p.start(bin)
		if err == nil {
			err = ready(b.ctx, c.dial)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		all = append(all, c)
	}
	return all, nil
}

func (b *bed) buildPeer(name, to string, say func(string, ...any)) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	say("building %s", name)
	cmd := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-ldflags", shore.LinkerFlags(), "-o", to, peerPrograms[name])
	cmd.Dir, cmd.Env = "peers", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s in bench/peers: %w\n%s", name, err, out)
	}
	return nil
}

// addresses are n that nobody listens on.
func (b *bed) addresses(n int) (out []string, err error) {
	for range n {
		a, err := b.address()
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

func port(address string) string {
	_, p, _ := splitPort(address)
	return fmt.Sprint(p)
}

// konnectivity starts upstream's server, with the flags of its mode, and an agent.
func (b *bed) konnectivity(bin, name string, flags ...string) (near, far *proc.Process, err error) {
	at, err := b.addresses(5)
	if err != nil {
		return nil, nil, err
	}
	near, err = b.run(name+"-server", "Starting agent server", append([]string{filepath.Join(bin, "proxy-server"),
		"--logtostderr=true", "--server-count=1", "--agent-bind-address=127.0.0.1", "--agent-port=" + port(at[0]),
		"--cluster-ca-cert=" + b.certs.ca, "--cluster-cert=" + b.certs.cert, "--cluster-key=" + b.certs.key,
		"--admin-bind-address=127.0.0.1", "--admin-port=" + port(at[1]), "--health-bind-address=127.0.0.1", "--health-port=" + port(at[2])}, flags...)...)
	if err != nil {
		return nil, nil, err
	}
	far, err = b.run(name+"-agent", "", filepath.Join(bin, "proxy-agent"),
		"--logtostderr=true", "--proxy-server-host=localhost", "--proxy-server-port="+port(at[0]), "--agent-identifiers=host=localhost",
		"--ca-cert="+b.certs.ca, "--agent-cert="+b.certs.cert, "--agent-key="+b.certs.key,
		"--admin-server-port="+port(at[3]), "--health-server-port="+port(at[4]))
	return near, far, err
}

func (b *bed) konnectivityConnect(bin string) (*chain, error) {
	north, err := b.address()
	if err != nil {
		return nil, err
	}
	near, far, err := b.konnectivity(bin, "konnectivity-connect", "--mode=http-connect", "--server-bind-address=127.0.0.1", "--server-port="+port(north),
		"--server-ca-cert="+b.certs.ca, "--server-cert="+b.certs.cert, "--server-key="+b.certs.key)
	if err != nil {
		return nil, err
	}
	client, _, err := b.certs.tls()
	if err != nil {
		return nil, err
	}
	return &chain{name: "konnectivity, HTTPConnect/mTLS", transport: "gRPC", dial: mtlsConnect(north, b.target, client),
		near: []*proc.Process{near}, far: []*proc.Process{far}}, nil
}

func (b *bed) konnectivityGRPC(bin string) (*chain, error) {
	socket := filepath.Join(b.dir, "konnectivity.sock")
	near, far, err := b.konnectivity(bin, "konnectivity-grpc", "--mode=grpc", "--uds-name="+socket, "--server-port=0")
	if err != nil {
		return nil, err
	}
	return &chain{name: "konnectivity, gRPC/UDS", transport: "gRPC", dial: unixGRPC(socket, b.target),
		near: []*proc.Process{near}, far: []*proc.Process{far}}, nil
}

// write makes a file of a peer's.
func (b *bed) write(name, text string) (path string, err error) {
	path = filepath.Join(b.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

func (b *bed) frp(bin, protocol string) (*chain, error) {
	at, err := b.addresses(3)
	if err != nil {
		return nil, err
	}
	const auth = "bench"
	tls := func(what string) string {
		return fmt.Sprintf("transport.tls.certFile = %q\ntransport.tls.keyFile = %q\ntransport.tls.trustedCaFile = %q\n%s", b.certs.cert, b.certs.key, b.certs.ca, what)
	}
	server, err := b.write("frps-"+protocol+".toml", fmt.Sprintf("bindAddr = \"127.0.0.1\"\nproxyBindAddr = \"127.0.0.1\"\nbindPort = %s\nquicBindPort = %s\nauth.token = %q\n%s",
		port(at[0]), port(at[1]), auth, tls("transport.tls.force = true\n")))
	if err != nil {
		return nil, err
	}
	to, transport := at[0], "TLS+yamux"
	if protocol == "quic" {
		to, transport = at[1], "QUIC"
	}
	client, err := b.write("frpc-"+protocol+".toml", fmt.Sprintf(`serverAddr = "127.0.0.1"
serverPort = %s
auth.token = %q
transport.protocol = %q
%s
[[proxies]]
name = "target"
type = "tcp"
localIP = "127.0.0.1"
localPort = %s
remotePort = %s
`, port(to), auth, protocol, tls("transport.tls.serverName = \"localhost\"\n"), port(b.target), port(at[2])))
	if err != nil {
		return nil, err
	}
	near, err := b.run("frps-"+protocol, "started successfully", filepath.Join(bin, "frps"), "-c", server)
	if err != nil {
		return nil, err
	}
	far, err := b.run("frpc-"+protocol, "start proxy success", filepath.Join(bin, "frpc"), "-c", client)
	return &chain{name: "frp", transport: transport, note: peerNote, dial: plainDial(at[2]), near: []*proc.Process{near}, far: []*proc.Process{far}}, err
}

func (b *bed) chisel(bin string) (*chain, error) {
	at, err := b.addresses(2)
	if err != nil {
		return nil, err
	}
	near, err := b.run("chisel-server", "Listening", filepath.Join(bin, "chisel"), "server", "--host", "127.0.0.1", "--port", port(at[0]), "--reverse")
	if err != nil {
		return nil, err
	}
	far, err := b.run("chisel-client", "Connected", filepath.Join(bin, "chisel"), "client", "http://"+at[0], "R:"+at[1]+":"+b.target)
	return &chain{name: "chisel", transport: "SSH in a WebSocket", note: peerNote, dial: plainDial(at[1]), near: []*proc.Process{near}, far: []*proc.Process{far}}, err
}

func (b *bed) remotedialer(bin string) (*chain, error) {
	at, err := b.addresses(2)
	if err != nil {
		return nil, err
	}
	program := filepath.Join(bin, "remotedialer")
	near, err := b.run("remotedialer-near", "serves", program, "--role", "near", "--north", at[0], "--south", at[1], "--certs", b.dir)
	if err != nil {
		return nil, err
	}
	far, err := b.run("remotedialer-far", "dials", program, "--role", "far", "--south", at[1], "--certs", b.dir)
	if err != nil {
		return nil, err
	}
	client, _, err := b.certs.tls()
	return &chain{name: "remotedialer", transport: "WebSocket on TLS", dial: mtlsConnect(at[0], b.target, client),
		near: []*proc.Process{near}, far: []*proc.Process{far}}, err
}
