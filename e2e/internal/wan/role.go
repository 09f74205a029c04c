package wan

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// roleVar is the environment variable by which a process knows that it is one of a World's.
const roleVar = "MOORING_WAN_ROLE"

// roles are what a process can be. Each runs until ctx ends, which it does when the parent closes standard input.
var roles = map[string]func(context.Context, *role) error{
	"broker": broker, "agent": agent, "portal": portal, "trickle": trickle,
}

// Main runs the process's role if it has one, and does not return then.
func Main() {
	name := os.Getenv(roleVar)
	if name == "" {
		return
	}
	run, ok := roles[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "%s: no such role as %q\n", roleVar, name)
		os.Exit(2)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &role{in: bufio.NewReader(os.Stdin), stop: cancel, log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if err := run(ctx, r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// role is a process as it sees itself.
type role struct {
	in   *bufio.Reader
	stop func()
	log  *slog.Logger

	mu sync.Mutex // one event at a time
}

// configure reads the configuration, which is the first line of the input.
func (r *role) configure(config any) error {
	line, err := r.in.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, config)
}

// say reports an event.
func (r *role) say(e Event) {
	e.At = time.Now()
	b, err := json.Marshal(e)
	if err != nil {
		r.log.Error("an event can not be reported", "err", err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = os.Stdout.Write(append(b, '\n'))
}

// obey carries out the commands of the input, each in a goroutine of its own, and stops the process at its end.
func (r *role) obey(do func(verb, arg string) (Event, error)) {
	defer r.stop()
	for {
		line, err := r.in.ReadString('\n')
		if err != nil {
			return
		}
		number, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		id, err := strconv.Atoi(number)
		if err != nil {
			r.log.Error("a command without a number", "line", line)
			return
		}
		go func() {
			verb, arg, _ := strings.Cut(command, " ")
			began := time.Now()
			e, err := do(verb, arg)
			if err != nil {
				e.Err = err.Error()
			}
			if e.Took == 0 {
				e.Took = time.Since(began)
			}
			e.Name, e.ID = answered, id
			r.say(e)
		}()
	}
}

// Timing is what a test scales of a tunnel.Config. Zero values mean that one's defaults.
type Timing struct {
	HeartbeatInterval, HeartbeatTimeout         time.Duration
	ProbeTimeout, OpenTimeout, HandshakeTimeout time.Duration
	MaxPending, StreamWindow                    int
}

func (t Timing) config(log *slog.Logger) tunnel.Config {
	return tunnel.Config{
		Handler:           serveStream,
		HeartbeatInterval: t.HeartbeatInterval, HeartbeatTimeout: t.HeartbeatTimeout,
		ProbeTimeout: t.ProbeTimeout, OpenTimeout: t.OpenTimeout, HandshakeTimeout: t.HandshakeTimeout,
		MaxPending: t.MaxPending, StreamWindow: t.StreamWindow,
		Logger: log,
	}
}
