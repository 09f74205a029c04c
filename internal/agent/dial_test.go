package agent

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// logBuffer is a log that can be waited for.
type logBuffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	more chan struct{} // holds one
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
	return l.b.Write(p)
}

// await returns when the log holds a line with all of parts.
func (l *logBuffer) await(t *testing.T, parts ...string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		l.mu.Lock()
		all := l.b.String()
		l.mu.Unlock()
	lines:
		for line := range strings.Lines(all) {
			for _, part := range parts {
				if !strings.Contains(line, part) {
					continue lines
				}
			}
			return
		}
		select {
		case <-l.more:
		case <-deadline:
			t.Fatalf("no line of the log has %q:\n%s", parts, all)
		}
	}
}

// TestDialsAreNamedInTheLog: what the broker calls a dial, and what the agent calls its own streams to the API server,
// is in the agent's log, as it is in the broker's.
func TestDialsAreNamedInTheLog(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	logs := &logBuffer{more: make(chan struct{}, 1)}
	a, err := New(cfg, Options{Logger: slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	runAgent(t, a)
	sess := s.session()
	until(t, cfg.Socket, "ready", isReady)
	untilListening(t, cfg.Kubelet.Port)

	refused := wire.NewTrace()
	if _, err := sess.Open(tunnel.WithTrace(t.Context(), refused), wire.KindDial, "edge-1:22"); err == nil {
		t.Error("the node's port 22 was reached")
	}
	logs.await(t, "level=INFO", `msg="refused a connection from the broker" dial=`+refused.String()+` target=edge-1:22 code="denied by policy" took=`)

	accepted, target := wire.NewTrace(), fmt.Sprintf("edge-1:%d", cfg.Kubelet.Port)
	st, err := sess.Open(tunnel.WithTrace(t.Context(), accepted), wire.KindDial, target)
	if err != nil {
		t.Fatal(err)
	}
	logs.await(t, "level=DEBUG", `msg="accepted a connection from the broker" dial=`+accepted.String()+" target="+target)
	io.WriteString(st, "hello")
	st.CloseWrite()
	if got, err := io.ReadAll(st); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
	logs.await(t, "level=DEBUG", `msg="a connection from the broker ended" dial=`+accepted.String()+" target="+target+" toNode=5 toBroker=5 after=")

	select {
	case up := <-s.named:
		if !up.Valid() {
			t.Error("a stream to the API server has no name")
		}
		logs.await(t, `msg="local API endpoint: connection ended" dial=`+up.String()+" up=")
	case <-time.After(20 * time.Second):
		t.Error("the node opened no stream to its API server")
	}
}
