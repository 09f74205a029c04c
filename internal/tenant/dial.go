package tenant

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/mooring-edge/mooring/internal/proxyproto"
)

const (
	dialTimeout = 15 * time.Second
	// headStart is how long an address has before the next one is tried beside it: a SYN that was lost is sent again after one second.
	headStart = time.Second
	// maxUpstreams bounds a tenant's further addresses.
	maxUpstreams = 16
)

// Addresses are where the API server is dialled, in order.
func (t Tenant) Addresses() []string { return append([]string{t.Address}, t.Upstreams...) }

// validateUpstreams wants addresses that can be dialled, each once.
func (t Tenant) validateUpstreams() error {
	var errs []error
	if len(t.Upstreams) > maxUpstreams {
		errs = append(errs, fmt.Errorf("tenant %s: %d upstreams, want at most %d", t.Name, len(t.Upstreams), maxUpstreams))
	}
	for i, a := range t.Upstreams {
		host, port, err := net.SplitHostPort(a)
		if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || host == "" || n == 0 {
			errs = append(errs, fmt.Errorf("tenant %s: upstream %q: want host:port", t.Name, a))
		}
		if a == t.Address || slices.Contains(t.Upstreams[:i], a) {
			errs = append(errs, fmt.Errorf("tenant %s: upstream %s is given twice (the kubeconfig's server is the first of them)", t.Name, a))
		}
	}
	return errors.Join(errs...)
}

// dial opens a TCP connection to the tenant's API server without regard to what is known of its addresses, bounded by ctx
// and 15 seconds.
func (t Tenant) dial(ctx context.Context) (net.Conn, error) {
	c, _, err := dialFirst(ctx, t.Addresses(), dialTCP)
	if err != nil {
		return nil, fmt.Errorf("tenant %s: dial API server: %w", t.Name, err)
	}
	return t.introduce(c, nil)
}

// introduce writes the PROXY header, if the tenant wants one. It is the first that goes out, and so never waits.
func (t Tenant) introduce(c net.Conn, client net.Addr) (net.Conn, error) {
	if !t.ProxyProtocol {
		return c, nil
	}
	if _, err := c.Write(proxyproto.Append(nil, client, c.RemoteAddr())); err != nil {
		c.Close()
		return nil, fmt.Errorf("tenant %s: PROXY header to API server at %s: %w", t.Name, c.RemoteAddr(), err)
	}
	return c, nil
}

func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: 30 * time.Second}
	return d.DialContext(ctx, "tcp", address)
}

// verdict is what a dial showed of an address.
type verdict struct {
	address string
	err     error // nil: it was reached
}

var errSlow = errors.New("did not answer within " + headStart.String())

// dialFirst dials addresses in order, each once those before have failed or had their head start, and returns the first
// connection. What it saw of each address comes with it: of one that was still waited for when another answered, that it is slow
// if it had begun before. All that it began has ended when it returns.
func dialFirst(ctx context.Context, addresses []string, dial func(context.Context, string) (net.Conn, error)) (net.Conn, []verdict, error) {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	type result struct {
		i    int
		conn net.Conn
		err  error
	}
	results := make(chan result)
	var seen []verdict
	var errs []error
	done := make([]bool, len(addresses))
	begun, pending := 0, 0
	start := func() {
		i := begun
		begun, pending = begun+1, pending+1
		go func() {
			c, err := dial(ctx, addresses[i])
			results <- result{i, c, err}
		}()
	}
	next := time.NewTimer(headStart)
	defer next.Stop()
	start()
	for pending > 0 {
		select {
		case <-next.C:
			if begun < len(addresses) {
				start()
				next.Reset(headStart)
			}
		case r := <-results:
			pending--
			done[r.i] = true
			if r.err == nil {
				cancel()
				for ; pending > 0; pending-- {
					if late := <-results; late.conn != nil {
						late.conn.Close()
					}
				}
				for i := range r.i {
					if !done[i] {
						seen = append(seen, verdict{addresses[i], errSlow})
					}
				}
				return r.conn, append(seen, verdict{address: addresses[r.i]}), nil
			}
			if caller.Err() != context.Canceled { // who went away while it was dialled has shown nothing
				seen = append(seen, verdict{addresses[r.i], r.err})
			}
			errs = append(errs, fmt.Errorf("%s: %w", addresses[r.i], r.err))
			if begun < len(addresses) && ctx.Err() == nil {
				start()
				next.Reset(headStart)
			}
		}
	}
	return nil, seen, errors.Join(errs...)
}
