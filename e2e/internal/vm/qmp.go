package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"
)

// qmpLimit is how long QEMU may take to answer: it answers at once, but under load on two cores.
const qmpLimit = 30 * time.Second

// command gives QEMU a command that has no arguments, and returns when it has answered.
func (m *Machine) command(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, qmpLimit)
	defer cancel()
	if err := converse(ctx, m.path("qmp"), name); err != nil {
		return fmt.Errorf("QMP command %s for the machine in %s: %w", name, m.cfg.Dir, err)
	}
	return nil
}

// converse has one conversation of QEMU's machine protocol (docs/interop/qmp-spec in its source): a greeting, the
// negotiation of capabilities, the command. Events between them are passed over.
func converse(ctx context.Context, socket, command string) error {
	conn, err := dial(ctx, socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	var greeting struct{ QMP json.RawMessage }
	if err := in.Decode(&greeting); err != nil {
		return err
	}
	for _, execute := range []string{"qmp_capabilities", command} {
		if err := out.Encode(map[string]string{"execute": execute}); err != nil {
			return err
		}
		if err := answered(in); err != nil {
			return err
		}
	}
	return nil
}

// answered reads up to the answer to a command.
func answered(in *json.Decoder) error {
	for {
		var m struct {
			Return json.RawMessage
			Error  *struct{ Class, Desc string }
		}
		if err := in.Decode(&m); err != nil {
			return err
		}
		if m.Error != nil {
			return fmt.Errorf("%s: %s", m.Error.Class, m.Error.Desc)
		}
		if m.Return != nil {
			return nil
		}
	}
}

// dial connects to QEMU's socket, which it makes a moment after it was started.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil || !os.IsNotExist(err) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}
