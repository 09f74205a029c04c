package egressproxy

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/mooring-edge/mooring/internal/httpconnect"
	"github.com/mooring-edge/mooring/internal/listen"
	"github.com/mooring-edge/mooring/internal/splice"
)

// maxHeader bounds a request's headers, in bytes; the egress selector sends about 100.
const maxHeader = 8 << 10

type connKey struct{}

// serveConnect answers CONNECT requests until ctx ends. What was answered by then is cut by the end of the tunnel's session.
func (p *Proxy) serveConnect(ctx context.Context, l *listen.Handed) {
	var http1 http.Protocols
	http1.SetHTTP1(true)
	srv := &http.Server{
		Handler:           http.HandlerFunc(p.connect),
		Protocols:         &http1,
		ReadHeaderTimeout: firstBytes,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
	defer context.AfterFunc(ctx, func() { srv.Close() })()
	_ = srv.Serve(l) // ends by Close alone
}

// connect answers one request and carries its bytes until both directions end. There always is an answer: the API server waits
// for one without a deadline.
func (p *Proxy) connect(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "close")
	if r.Method != http.MethodConnect {
		w.Header().Set("Allow", http.MethodConnect)
		http.Error(w, "this socket takes CONNECT requests, and konnectivity's gRPC, of kube-apiserver's egress selector only", http.StatusMethodNotAllowed)
		return
	}
	ctx := r.Context() // ends when the API server hangs up
	node, log, refused := p.dial(ctx, protoConnect, r.Host)
	if refused != nil {
		httpconnect.Refuse(w, refused.code.HTTPStatus(), refused.text)
		return
	}
	client, err := httpconnect.Accept(w)
	if err != nil {
		log.Info("connection lost before its answer", "err", err)
		node.Close()
		return
	}
	defer p.metrics.open(protoConnect)()
	started := time.Now()
	// The splice knows sockets better than what wraps them. The wrapper is closed here, so that its place is given back.
	if c, ok := client.(*sniffed); ok {
		client = c.Conn
	}
	defer ctx.Value(connKey{}).(net.Conn).Close()
	toNode, toClient, err := splice.Splice(client, node)
	log.Debug("connection ended", "toNode", toNode, "toAPIServer", toClient, "after", time.Since(started), "err", err)
}
