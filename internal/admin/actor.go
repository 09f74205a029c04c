package admin

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

type actorKey struct{}

// ConnContext is the http.Server.ConnContext of whoever serves Handler: it notes which user is at the other end
// of the socket, as the kernel tells.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || credErr != nil {
		return ctx
	}
	return context.WithValue(ctx, actorKey{}, fmt.Sprintf("operator uid=%d", cred.Uid))
}

// WithActor names on whose behalf the broker itself acts.
func WithActor(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, actorKey{}, who)
}

// Actor names the user on whose behalf a call of the socket runs, for the audit log.
func Actor(ctx context.Context) string {
	if who, ok := ctx.Value(actorKey{}).(string); ok {
		return who
	}
	return "operator"
}
