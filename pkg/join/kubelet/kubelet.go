// Package kubelet gives a node's kubelet its files and keeps it running.
//
// Render is pure: from what the broker said and what the agent's configuration says to file contents and
// a command line. Rendered.Write puts them on disk, each whole. Child and Systemd keep the process
// running, under the agent or under systemd; neither ever stops a kubelet because the agent ends or
// because the network is away, so that pods outlive both.
//
// It neither asks for certificates nor talks to anything on the network; that is pkg/join's.
package kubelet

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/enrollapi"
)

// Paths are where a node's kubelet files are.
type Paths struct {
	Kubeconfig    string // the kubelet's way to its API server
	Configuration string // KubeletConfiguration
	CA            string // verifies the API server, and who may call the kubelet
	Environment   string // KUBELET_ARGS for systemd units
	Log           string // of a kubelet in mode child
	Process       string // who the kubelet in mode child is
	Applied       string // what the systemd unit was last started with
	RootDir       string // the kubelet's own state
	PKI           string // the kubelet's certificates
}

// PathsIn returns the layout under the agent's state directory and the kubelet's root directory.
func PathsIn(stateDir, rootDir string) Paths {
	in := func(name string) string { return filepath.Join(stateDir, name) }
	return Paths{
		Kubeconfig: in("kubelet.kubeconfig"), Configuration: in("kubelet.yaml"), CA: in("kubelet-ca.crt"),
		Environment: in("kubelet.env"), Log: in("kubelet.log"), Process: in("kubelet.process"), Applied: in("kubelet.applied"),
		RootDir: rootDir, PKI: filepath.Join(rootDir, "pki"),
	}
}

// ClientCertificate is where the kubelet keeps its current client certificate and key.
func (p Paths) ClientCertificate() string { return filepath.Join(p.PKI, currentPair) }

// Settings are all that the files are made of.
type Settings struct {
	Node          string
	APIAddress    string // host:port of the node's local API endpoint
	APIServerName string // the name in the API server's certificate
	APIServerCA   []byte // PEM
	Configuration json.RawMessage
	Overlay       map[string]any // laid over Configuration
	Labels        map[string]string
	Taints        []enrollapi.Taint
	Port          int
	Addresses     []netip.Addr // passed as --node-ip where set
	ExtraArgs     []string
	// Revision changes when a running kubelet should be restarted although no file differs.
	Revision string
	Paths    Paths
}

// Rendered is what Settings come to.
type Rendered struct {
	// Args is the kubelet's command line, without the program.
	Args []string
	// DialAddress is where the kubelet listens, as seen from this machine.
	DialAddress netip.AddrPort
	// Warnings are keys of the configuration that this version does not know; the kubelet may.
	Warnings []string

	files    []file
	revision string
}

type file struct {
	path string
	data []byte
	perm os.FileMode
}

// Render makes the files and the command line.
func Render(s Settings) (*Rendered, error) {
	conf, err := configuration(s)
	if err != nil {
		return nil, err
	}
	kubeconfig, err := kubeconfig(s)
	if err != nil {
		return nil, err
	}
	r := &Rendered{Args: arguments(s), DialAddress: conf.dial, Warnings: conf.warnings, revision: s.Revision}
	env, err := environment(r.Args)
	if err != nil {
		return nil, err
	}
	r.files = []file{
		{s.Paths.CA, s.APIServerCA, 0o644},
		{s.Paths.Configuration, conf.yaml, 0o600},
		{s.Paths.Kubeconfig, kubeconfig, 0o600},
		{s.Paths.Environment, env, 0o600},
	}
	return r, nil
}

// Write puts on disk what is not there already; it tells whether anything was.
func (r *Rendered) Write() (changed bool, err error) {
	for _, f := range r.files {
		if old, err := os.ReadFile(f.path); err == nil && bytes.Equal(old, f.data) {
			continue
		}
		if err := durable.WriteFile(f.path, f.data, f.perm); err != nil {
			return changed, fmt.Errorf("write the kubelet's %s: %w", filepath.Base(f.path), err)
		}
		changed = true
	}
	return changed, nil
}

// Hash changes when a running kubelet would have to be restarted to take what was rendered.
func (r *Rendered) Hash() string {
	h := sha256.New()
	part := func(b []byte) { fmt.Fprintf(h, "%d:", len(b)); h.Write(b) }
	part([]byte(r.revision))
	for _, a := range r.Args {
		part([]byte(a))
	}
	for _, f := range r.files {
		part([]byte(f.path))
		part(f.data)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

const header = "# Written by edge-agent at each start. Lasting changes go into its own configuration (kubelet.*).\n"

// kubeconfigFile is a kubeconfig as far as one is written here. client-go's type (tools/clientcmd/api/v1), which it is read by, would bring what
// converts it.
type kubeconfigFile struct {
	APIVersion     string         `json:"apiVersion"`
	Kind           string         `json:"kind"`
	Clusters       []namedCluster `json:"clusters"`
	Users          []namedUser    `json:"users"`
	Contexts       []namedContext `json:"contexts"`
	CurrentContext string         `json:"current-context"`
}

type namedCluster struct {
	Name    string `json:"name"`
	Cluster struct {
		Server        string `json:"server"`
		TLSServerName string `json:"tls-server-name"`
		CA            []byte `json:"certificate-authority-data"`
	} `json:"cluster"`
}

type namedUser struct {
	Name string `json:"name"`
	User struct {
		Certificate string `json:"client-certificate"`
		Key         string `json:"client-key"`
	} `json:"user"`
}

type namedContext struct {
	Name    string `json:"name"`
	Context struct {
		Cluster string `json:"cluster"`
		User    string `json:"user"`
	} `json:"context"`
}

// kubeconfig points the kubelet at the local API endpoint, with the certificate that it rotates itself.
func kubeconfig(s Settings) ([]byte, error) {
	const name = "mooring"
	cluster, user, current := namedCluster{Name: name}, namedUser{Name: name}, namedContext{Name: name}
	cluster.Cluster.Server = "https://" + s.APIAddress
	cluster.Cluster.TLSServerName = s.APIServerName
	cluster.Cluster.CA = s.APIServerCA
	user.User.Certificate, user.User.Key = s.Paths.ClientCertificate(), s.Paths.ClientCertificate()
	current.Context.Cluster, current.Context.User = name, name
	out, err := yaml.Marshal(kubeconfigFile{
		APIVersion: "v1", Kind: "Config", CurrentContext: name,
		Clusters: []namedCluster{cluster}, Users: []namedUser{user}, Contexts: []namedContext{current},
	})
	if err != nil {
		return nil, fmt.Errorf("render the kubelet's kubeconfig: %w", err)
	}
	return append([]byte(header), out...), nil
}

func arguments(s Settings) []string {
	args := []string{
		"--config=" + s.Paths.Configuration,
		"--kubeconfig=" + s.Paths.Kubeconfig,
		"--hostname-override=" + s.Node,
		"--root-dir=" + s.Paths.RootDir,
		"--cert-dir=" + s.Paths.PKI,
	}
	if len(s.Labels) > 0 {
		var labels []string
		for k, v := range s.Labels {
			labels = append(labels, k+"="+v)
		}
		slices.Sort(labels) // a map's order would look like a change at each start
		args = append(args, "--node-labels="+strings.Join(labels, ","))
	}
	if ip := nodeIP(s.Addresses); ip != "" {
		args = append(args, "--node-ip="+ip)
	}
	return append(args, s.ExtraArgs...)
}

// nodeIP names what the kubelet takes: one address, or one of each family.
func nodeIP(addrs []netip.Addr) string {
	if len(addrs) == 0 {
		return ""
	}
	out := addrs[0].Unmap().String()
	for _, a := range addrs[1:] {
		if a.Unmap().Is4() != addrs[0].Unmap().Is4() {
			return out + "," + a.Unmap().String()
		}
	}
	return out
}

// environment is a systemd EnvironmentFile. A unit's `$KUBELET_ARGS` is split at white space, with
// quotes respected, so an argument with white space is quoted once for the split, and all of it once
// for the file.
func environment(args []string) ([]byte, error) {
	var words []string
	for _, a := range args {
		if strings.ContainsAny(a, "'\"\\\n\r\x00") {
			return nil, fmt.Errorf("kubelet.extraArgs: quotes, backslashes and line breaks can't be handed on to systemd, got %s", strconv.Quote(a))
		}
		if a == "" || strings.ContainsAny(a, " \t") {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	return []byte(header + "KUBELET_ARGS=\"" + strings.Join(words, " ") + "\"\n"), nil
}
