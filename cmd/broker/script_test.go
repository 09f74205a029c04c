package main

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mooring-edge/mooring/internal/kubetest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"broker": func() { os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("MOORING_BROKER_SOCKET", socketPath(e.WorkDir))
			e.Values[running{}] = &server{}
			e.Values[standIn{}] = new(*kubetest.Server)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start-apiserver": startAPIServer,
			"stop-apiserver":  stopAPIServer,
			"start-broker":    startBroker,
			"kill-broker":     killBroker,
			"same-ca":         sameCA,
		},
	})
}

func socketPath(dir string) string { return filepath.Join(dir, "broker.sock") }

// running is the key of the script's broker process.
type running struct{}

type server struct{ cmd *exec.Cmd }

// standIn is the key of the script's stand-in for an API server.
type standIn struct{}

// startAPIServer starts a stand-in for a tenant's API server and writes an administrator's kubeconfig for it, with the
// files beside it that it names, to kube/. Its address is in $APISERVER.
func startAPIServer(ts *testscript.TestScript, _ bool, _ []string) {
	api := kubetest.Start()
	*ts.Value(standIn{}).(**kubetest.Server) = api
	ts.Defer(func() { stopAPIServer(ts, false, nil) })
	ts.Setenv("APISERVER", api.Address())
	dir := ts.MkAbs("kube")
	ts.Check(os.MkdirAll(dir, 0o700))
	for name, content := range map[string]string{
		"ca.crt": string(api.CA()), "token": api.AdminToken() + "\n",
		"admin.conf": `apiVersion: v1
kind: Config
current-context: x
contexts:
- {name: x, context: {cluster: c, user: u}}
clusters:
- {name: c, cluster: {server: "https://` + api.Address() + `", certificate-authority: ca.crt}}
users:
- {name: u, user: {tokenFile: token}}
`,
	} {
		ts.Check(os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
}

func stopAPIServer(ts *testscript.TestScript, _ bool, _ []string) {
	api := ts.Value(standIn{}).(**kubetest.Server)
	if *api != nil {
		(*api).Close()
		*api = nil
	}
}

// startBroker runs `broker serve` with the script's broker.yaml on free ports, and returns when it
// says that it serves. A port that was free may be another program's a moment later: then others are tried.
func startBroker(ts *testscript.TestScript, _ bool, _ []string) {
	var seen []string
	for range 10 {
		if seen = serveOnce(ts); seen == nil {
			return
		}
		if !strings.Contains(seen[len(seen)-1], "address already in use") {
			break
		}
	}
	ts.Fatalf("the broker ended before it served:\n%s", strings.Join(seen, "\n"))
}

// serveOnce is one try; it returns what the broker said if it ended, nil if it serves.
func serveOnce(ts *testscript.TestScript) []string {
	dir := ts.Getenv("WORK")
	cfg := ts.ReadFile("broker.yaml")
	for _, name := range []string{"FRONT", "EGRESS"} {
		cfg = strings.ReplaceAll(cfg, name, freePort(ts))
	}
	cfg = strings.NewReplacer("DATA", ts.Getenv("DATA"), "SOCKET", socketPath(dir)).Replace(cfg)
	ts.Check(os.WriteFile(filepath.Join(dir, "serve.yaml"), []byte(cfg), 0o600))

	cmd := exec.Command("broker", "serve", "--config", filepath.Join(dir, "serve.yaml"))
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	srv := ts.Value(running{}).(*server)
	srv.cmd = cmd
	ts.Defer(func() { srv.kill() })

	lines := bufio.NewScanner(stderr)
	seen := []string{"(nothing)"}
	for lines.Scan() {
		seen = append(seen, lines.Text())
		if strings.Contains(lines.Text(), "condition=Egress status=True") {
			go io.Copy(io.Discard, stderr) // ends with the process
			return nil
		}
	}
	srv.kill()
	return seen
}

func freePort(ts *testscript.TestScript) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

func killBroker(ts *testscript.TestScript, _ bool, _ []string) {
	ts.Value(running{}).(*server).kill()
}

// kill is a kill -9: nothing of the broker gets to tidy up.
func (s *server) kill() {
	if s.cmd != nil {
		s.cmd.Process.Kill()
		s.cmd.Wait()
		s.cmd = nil
	}
}

var caHash = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// sameCA compares the CA hashes in two files.
func sameCA(ts *testscript.TestScript, neg bool, args []string) {
	a, b := caHash.FindString(ts.ReadFile(args[0])), caHash.FindString(ts.ReadFile(args[1]))
	if a == "" || b == "" || (a == b) == neg {
		ts.Fatalf("CA hashes: %q and %q", a, b)
	}
}
