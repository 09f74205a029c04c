package main

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"edge-agent": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			return nil
		},
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":    exits,
			"mkconfig": mkconfig,
			"retry":    retry,
		},
	})
}

// exits CODE COMMAND... runs a command and checks its exit code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if err != nil {
		code = exitCode(err)
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s (%v)", code, args[0], err)
	}
}

// mkconfig writes agent.yaml: all paths in the script's directory, all ports free ones.
func mkconfig(ts *testscript.TestScript, _ bool, _ []string) {
	port := func() int {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		ts.Check(err)
		defer l.Close()
		return l.Addr().(*net.TCPAddr).Port
	}
	ts.Check(os.WriteFile(ts.MkAbs("agent.yaml"), fmt.Appendf(nil, `apiVersion: mooring.dev/v1alpha1
kind: AgentConfiguration
joinFile: %[1]s/join.yaml
stateDir: %[1]s/state
socket: %[1]s/agent.sock
healthAddress: 127.0.0.1:%[2]d
apiAddress: 127.0.0.1:%[3]d
node:
  name: edge-1
  console: ""
  serial: SN-0815
kubelet:
  mode: child
  path: %[1]s/no-kubelet
  rootDir: %[1]s/kubelet
  port: %[4]d
  config:
    containerRuntimeEndpoint: unix://%[1]s/no-containerd.sock
`, ts.Getenv("WORK"), port(), port(), port()), 0o600))
}

// retry TEXT COMMAND... runs a command until it prints the text, whatever its exit code.
func retry(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		_ = ts.Exec(args[1], args[2:]...)
		if strings.Contains(ts.ReadFile("stdout"), args[0]) {
			return
		}
	}
	ts.Fatalf("%v did not print %q within a minute", args[1:], args[0])
}
