package egressproxy

import (
	"context"
	"net"
	"time"

	"github.com/mooring-edge/mooring/internal/httpconnect"
	"github.com/mooring-edge/mooring/internal/splice"
)

// connect answers the one CONNECT request of a connection, of which early was read, and carries its bytes until both directions end. There
// always is an answer: the API server waits for one without a deadline. It closes conn. When ctx ends, what was not answered is cut;
// what was, by the end of the tunnel's session.
func (p *Proxy) connect(ctx context.Context, conn net.Conn, early []byte) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(firstBytes))
	r, err := httpconnect.Read(conn, early, "this socket takes CONNECT requests, and konnectivity's gRPC, of kube-apiserver's egress selector only")
	if err != nil {
		p.log.Debug("a connection came to nothing", "err", err)
		return
	}
	_ = conn.SetDeadline(time.Time{})
	node, log, refused := p.dial(r.Watch(ctx), protoConnect, r.Target)
	if refused != nil {
		r.Refuse(refused.code.HTTPStatus(), refused.text)
		return
	}
	client, err := r.Accept()
	if err != nil {
		log.Info("connection lost before its answer", "err", err)
		node.Close()
		return
	}
	stop()
	defer p.metrics.open(protoConnect)()
	started := time.Now()
	toNode, toClient, err := splice.Splice(client, node)
	log.Debug("connection ended", "toNode", toNode, "toAPIServer", toClient, "after", time.Since(started), "err", err)
}
