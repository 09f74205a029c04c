package harness

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// The ways of a tenant's API server to the broker, as `broker egress issue --mode` names them.
const (
	ModeConnect     = "http-connect"
	ModeSidecarHTTP = "sidecar-http"
	ModeSidecarGRPC = "sidecar-grpc"
)

// withSidecar tells whether the tenant's API servers go through a sidecar.
func (t *Tenant) withSidecar() bool { return t.EgressMode != "" && t.EgressMode != ModeConnect }

// sidecarSocket is where the tenant's API servers find their sidecar.
func (t *Tenant) sidecarSocket() string { return filepath.Join(t.Dir, "egress.sock") }

// StartSidecar starts the tenant's sidecar, again if it was killed, and waits until it takes connections.
func (t *Tenant) StartSidecar(ctx context.Context) error {
	p := t.platform
	proc, err := p.env.start(t.Name+"/egress-proxy", false, p.argv(p.env.Product("broker"), "egress-proxy",
		"--dir", t.EgressDir(), "--socket", t.sidecarSocket(), "--log-level", "debug"))
	if err != nil {
		return err
	}
	t.Sidecar = proc
	_, err = p.env.Wait(ctx, "the sidecar of "+t.Name, 10*time.Second, func(context.Context) error {
		c, err := net.Dial("unix", t.sidecarSocket())
		if err == nil {
			err = c.Close()
		}
		return err
	})
	return err
}

// APIServer is the process that Start, or RestartAPIServer, started.
func (t *Tenant) APIServer() *Proc { return t.procs[0] }

// RestartAPIServer has the API server start again, as after a change of its flags or files.
func (t *Tenant) RestartAPIServer(ctx context.Context) error {
	t.procs[0].Stop()
	proc, err := t.StartAPIServer(ctx, "", t.Port, t.pki("ca.crt"))
	if err == nil {
		t.procs[0] = proc
	}
	return err
}

// askSidecar opens a connection to the tenant's sidecar, for Connect.
func (t *Tenant) askSidecar(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", t.sidecarSocket())
}

// SidecarLog is all that the tenant's sidecars have said.
func (t *Tenant) SidecarLog() (string, error) {
	if t.Sidecar == nil {
		return "", fmt.Errorf("%s has no sidecar", t.Name)
	}
	data, err := os.ReadFile(t.Sidecar.Log)
	return string(data), err
}
