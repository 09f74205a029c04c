package layers

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/mooring-edge/mooring/"

// layer gives every package its height: imports among them go strictly down. A new package gets its
// line here, which is the moment to think about where it belongs.
var layer = map[string]int{
	"cmd/edge-agent":       60,
	"cmd/broker":           60,
	"internal/agent":       50,
	"internal/broker":      50,
	"internal/admin":       45,
	"internal/front":       40,
	"internal/egress":      40,
	"internal/egressproxy": 40,
	"internal/enroll":      40,
	"pkg/join":             40,
	"internal/hostsfile":   40,
	"internal/cluster":     40,
	"pkg/join/jointest":    35,
	"internal/kubetest":    35,
	"pkg/join/kubelet":     30,
	"internal/switchboard": 30,
	"internal/peers":       25,
	"internal/tracing":     30,
	"internal/tenant":      30,
	"pkg/tunnel":           20,
	"internal/pki":         20,
	"internal/store":       20,
	"internal/config":      20,
	"internal/enrollapi":   10,
	"internal/durable":     10,
	"internal/relay":       10,
	"pkg/tunnel/wire":      10,
	"internal/splice":      10,
	"internal/bulk":        5,
	"internal/bidi":        10,
	"internal/httpconnect": 10,
	"pkg/health":           10,
	"internal/version":     10,
	"internal/audit":       10,
	"internal/strangers":   10,
	"internal/proxyproto":  10,
	"internal/underway":    10,
	"internal/rounds":      0,
	"internal/sysmon":      5,
	"internal/processors":  0,
	"internal/listen":      10,
	"internal/hostnet":     10,
	"internal/manpages":    10,
	"internal/layers":      0,

	"internal/tracing/tracingtest": 10,
	"internal/tenant/kamaji":       40,
	"internal/tenant/files":        40,

	"internal/konnectivity": 40,
}

// forbidden are imports that no package may have but those excepted, directly or, where deep is set,
// through any other package.
var forbidden = []struct {
	in      []string // the packages the rule is about; none means all
	imports []string // import paths, with all below them
	except  []string
	deep    bool
	reason  string
}{
	{
		imports: []string{"github.com/quic-go/", "github.com/hashicorp/yamux"},
		except:  []string{"pkg/tunnel"},
		reason:  "a transport is an inner matter of the tunnel: everything else sees a Session and a net.Conn",
	},
	{
		imports: []string{"go.etcd.io/", "go.uber.org/zap"},
		except:  []string{"internal/store"},
		reason:  "what the store is made of can change in one package, and keys are written under one set of rules",
	},
	{
		imports: []string{"k8s.io/client-go/kubernetes", "k8s.io/client-go/informers"},
		except:  []string{"internal/enroll", "internal/cluster", "internal/tenant/kamaji"},
		reason:  "the full clientset weighs 12 MB; rest and typed structs do elsewhere (internal/tenant/kamaji takes its scheme, for Secrets and ConfigMaps, beside controller-runtime)",
	},
	{
		imports: []string{"sigs.k8s.io/controller-runtime"},
		except:  []string{"internal/tenant/kamaji"},
		reason:  "caches, queues and leader election are for the management cluster's objects; tenants are looked after by plain clients, one each, that share nothing",
	},
	{
		in:      []string{"internal/tenant/kamaji", "internal/tenant/files"},
		imports: []string{module + "internal/enroll", module + "internal/admin", module + "internal/broker"},
		deep:    true,
		reason:  "what becomes of a control plane at the broker is asked of it through one small interface, so that it can be tested without",
	},
	{
		in:      []string{"cmd/edge-agent"},
		imports: []string{"sigs.k8s.io/controller-runtime", module + "internal/tenant"},
		deep:    true,
		reason:  "the agent knows neither tenants nor the management cluster, whose client would double its size",
	},
	{
		in:      []string{"cmd/edge-agent"},
		imports: []string{"k8s.io/client-go", "go.etcd.io/", module + "internal/store", module + "internal/broker"},
		deep:    true,
		reason:  "the agent stays lean: nothing of the broker's weight reaches it",
	},
	{
		imports: []string{"go.opentelemetry.io/otel"},
		except:  []string{"internal/tracing"},
		reason:  "what makes the spans can change in one package; everything else knows names of dials",
	},
	{
		in:      []string{"cmd/edge-agent"},
		imports: []string{"go.opentelemetry.io/otel/sdk", "go.opentelemetry.io/otel/exporters", "go.opentelemetry.io/proto", "google.golang.org/grpc", module + "internal/tracing"},
		deep:    true,
		reason:  "an exporter of spans would add megabytes to the agent, whose part of a dial is in the broker's spans",
	},
	{
		in:      []string{"pkg/tunnel"},
		imports: []string{"go.opentelemetry.io/", module + "internal/tracing"},
		deep:    true,
		reason:  "the tunnel carries the names of dials; who makes spans of them is not its concern",
	},
	{
		in:      []string{"cmd/edge-agent", "cmd/broker"},
		imports: []string{module + "internal/relay", module + "internal/tracing/tracingtest"},
		deep:    true,
		reason:  "bad networks are for tests to make, and so are collectors",
	},
	{
		in:      []string{"internal/pki"},
		imports: []string{"net/http"},
		reason:  "the issuing core does no I/O of its own, so that it can be read in one sitting",
	},
	{
		in:      []string{"internal/bulk", "pkg/tunnel/wire", "internal/httpconnect", "pkg/health", "internal/enrollapi"},
		imports: []string{module},
		reason:  "the bottom layer knows nothing of Mooring, so that any layer may use it",
	},
	{
		imports: []string{module + "internal/egress", module + "internal/front", module + "internal/enroll"},
		except:  []string{"internal/broker", "internal/admin"},
		reason:  "egress, front and enroll don't know each other: each can be changed, or run elsewhere, alone",
	},
	{
		imports: []string{"google.golang.org/grpc", "sigs.k8s.io/apiserver-network-proxy"},
		except:  []string{"internal/konnectivity", "internal/bidi", "internal/egressproxy", "internal/tracing", "internal/tracing/tracingtest", "internal/store"},
		reason:  "gRPC is what konnectivity speaks (and etcd, and OTLP): elsewhere a Way and a net.Conn are all there is",
	},
	{
		in:      []string{"pkg/tunnel", "internal/switchboard", "internal/front", "internal/egress", "internal/konnectivity"},
		imports: []string{"k8s.io/"},
		reason:  "the data path carries bytes; what Kubernetes is, the tenant and enrolment packages know",
	},
}

type pkg struct {
	ImportPath, Name, Doc, Dir         string
	Imports, TestImports, XTestImports []string
	Deps                               []string
}

// load lists the module's packages as the go command sees them.
func load(t *testing.T) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Dir,Imports,TestImports,XTestImports,Deps", module+"...")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	all := map[string]pkg{}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, module)] = p
	}
	if len(all) < 10 {
		t.Fatalf("only %d packages found: is the test run inside the module?", len(all))
	}
	return all
}

// under tells whether an import path is the one named, or below it.
func under(imp, path string) bool {
	return imp == path || strings.HasPrefix(imp, strings.TrimSuffix(path, "/")+"/")
}

// height is a package's layer; one below a listed package (pkg/tunnel/x) has to be listed itself.
func height(t *testing.T, name string) int {
	t.Helper()
	h, ok := layer[name]
	if !ok {
		t.Errorf("%s has no layer: give it one in the table above", name)
	}
	return h
}

func TestImportsGoDown(t *testing.T) {
	for name, p := range load(t) {
		from := height(t, name)
		for _, imp := range p.Imports {
			to, ok := strings.CutPrefix(imp, module)
			if ok && height(t, to) >= from {
				t.Errorf("%s imports %s, which is not below it", name, to)
			}
		}
	}
}

func TestForbiddenImports(t *testing.T) {
	all := load(t)
	for _, rule := range forbidden {
		for name, p := range all {
			if len(rule.in) > 0 && !slices.Contains(rule.in, name) || slices.Contains(rule.except, name) {
				continue
			}
			imports := slices.Concat(p.Imports, p.TestImports, p.XTestImports)
			if len(rule.in) > 0 {
				imports = p.Imports // such a rule is about the product; its tests may look further
			}
			if rule.deep {
				imports = p.Deps
			}
			for _, imp := range imports {
				for _, bad := range rule.imports {
					if under(imp, bad) && imp != p.ImportPath {
						t.Errorf("%s imports %s: %s", name, imp, rule.reason)
					}
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for name, p := range load(t) {
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command " + path.Base(name) + " "
		}
		if !strings.HasPrefix(p.Doc, want) {
			t.Errorf("%s: the package comment should start with %q, got %q", name, want, p.Doc)
		}
	}
}
