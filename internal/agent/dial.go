package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/mooring-edge/mooring/internal/splice"
	"github.com/mooring-edge/mooring/pkg/tunnel"
	"github.com/mooring-edge/mooring/pkg/tunnel/wire"
)

// dialTimeout bounds a dial to the kubelet or a pod, which are on this machine, or a Service: what takes longer is stuck.
const dialTimeout = 5 * time.Second

// kubeletDialer answers the broker's requests for connections into this node.
type kubeletDialer struct {
	policy  func() policy // asked for each request
	logger  *slog.Logger
	metrics *metrics
}

// handle is the tunnel's handler for streams that the broker opens.
func (d *kubeletDialer) handle(ctx context.Context, _ *tunnel.Session, r *tunnel.Request) {
	started := time.Now()
	log := d.logger.With("dial", r.Trace.String(), "target", r.Target)
	conn, code, err := d.dial(ctx, r.Kind, r.Target)
	d.metrics.dial(code)
	if err != nil {
		log.Info("refused a connection from the broker", "code", code.String(), "took", time.Since(started), "err", err)
		_ = r.Refuse(code, err.Error())
		return
	}
	stream, err := r.Accept()
	if err != nil {
		log.Debug("a connection from the broker was given up before its answer", "err", err)
		conn.Close()
		return
	}
	log.Debug("accepted a connection from the broker", "took", time.Since(started))
	toNode, toBroker, err := splice.Splice(stream, conn)
	log.Debug("a connection from the broker ended", "toNode", toNode, "toBroker", toBroker, "after", time.Since(started), "err", err)
}

// dial decides and dials; the code is the answer.
func (d *kubeletDialer) dial(ctx context.Context, kind wire.Kind, target string) (net.Conn, wire.Code, error) {
	if kind != wire.KindDial {
		return nil, wire.BadRequest, fmt.Errorf("a node takes requests to dial only, not %s", kind)
	}
	policy := d.policy()
	addr, err := policy.permit(target)
	if err != nil {
		return nil, wire.Denied, err
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", addr.String())
	if err == nil {
		return conn, wire.OK, nil
	}
	if addr != policy.kubelet() {
		return nil, dialCode(err), fmt.Errorf("%s can't be reached from the node: %w", addr, err)
	}
	return nil, dialCode(err), dialError(addr, err)
}

func dialCode(err error) wire.Code {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return wire.DialTimeout
	}
	if errors.Is(err, context.Canceled) {
		return wire.Canceled
	}
	return wire.DialRefused
}

// dialError says it for whoever typed `kubectl logs`.
func dialError(addr netip.AddrPort, err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("nothing listens on the node's %s: its kubelet is not running (yet); see `edge-agent status` there", addr)
	}
	return fmt.Errorf("the node's kubelet at %s can't be reached: %w", addr, err)
}
