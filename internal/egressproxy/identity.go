package egressproxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/pkg/health"
)

// The files of Config.Dir.
const (
	fileCert   = "client.crt"
	fileKey    = "client.key"
	fileCA     = "ca.crt"
	fileBroker = "broker"
)

// maxFile bounds each of the files, in bytes.
const maxFile = 256 << 10

// identity is what the files say at one moment.
type identity struct {
	broker string // host:port
	cert   tls.Certificate
	id     pki.Identity
	roots  *x509.CertPool
	sum    [sha256.Size]byte // of the files
}

// readIdentity reads the files. Those of a Secret's mount are read through the link that the kubelet swaps, so that all are
// of one version.
func readIdentity(dir string) (*identity, error) {
	base := dir
	if link, err := os.Readlink(filepath.Join(dir, "..data")); err == nil {
		if base = link; !filepath.IsAbs(link) {
			base = filepath.Join(dir, link)
		}
	}
	i := &identity{}
	sum := sha256.New()
	var files [4][]byte
	for n, name := range []string{fileCert, fileKey, fileCA, fileBroker} {
		data, err := readFile(filepath.Join(base, name))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(sum, "%d\n", len(data))
		sum.Write(data)
		files[n] = data
	}
	sum.Sum(i.sum[:0])
	return i, i.parse(dir, files)
}

func readFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile {
		return nil, fmt.Errorf("%s: want a file of at most %d bytes", path, maxFile)
	}
	return os.ReadFile(path)
}

func (i *identity) parse(dir string, files [4][]byte) (err error) {
	if i.cert, err = tls.X509KeyPair(files[0], files[1]); err != nil {
		return fmt.Errorf("%s and %s in %s: %w", fileCert, fileKey, dir, err)
	}
	if i.id, err = pki.ParseIdentity(i.cert.Leaf); err != nil {
		return fmt.Errorf("%s in %s: %w", fileCert, dir, err)
	}
	if i.id.Role != pki.RoleAPIServer {
		return fmt.Errorf("%s in %s is the certificate of %s, not of a tenant's API server: make one with `broker egress issue`", fileCert, dir, i.id)
	}
	i.roots = x509.NewCertPool()
	if !i.roots.AppendCertsFromPEM(files[2]) {
		return fmt.Errorf("%s in %s holds no certificate", fileCA, dir)
	}
	i.broker = strings.TrimSpace(string(files[3]))
	if host, port, err := net.SplitHostPort(i.broker); err != nil || host == "" || port == "" || strings.ContainsAny(i.broker, " \r\n\t") {
		return fmt.Errorf("%s in %s says %.80q: want one line, host:port of the broker's public port", fileBroker, dir, i.broker)
	}
	return nil
}

// tls is the configuration of all sessions. The files are read at each handshake; where they can't be, or don't fit each
// other as they are being written, what was read last is good.
func (p *Proxy) tls() *tls.Config {
	return pki.ClientTLS(
		func() (*tls.Certificate, error) {
			i, err := p.newest()
			if err != nil {
				return nil, err
			}
			return &i.cert, nil
		},
		func(cs tls.ConnectionState) error {
			i, err := p.newest()
			if err != nil {
				return err
			}
			return pki.VerifyPeer(func() *x509.CertPool { return i.roots }, x509.ExtKeyUsageServerAuth, time.Now, func(peer pki.Identity) error {
				if peer.Role != pki.RoleBroker || peer.TrustDomain != i.id.TrustDomain {
					return fmt.Errorf("not a broker of trust domain %s", i.id.TrustDomain)
				}
				return nil
			})(cs)
		})
}

// newest reads the files, or returns what was read last.
func (p *Proxy) newest() (*identity, error) {
	i, err := readIdentity(p.cfg.Dir)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.identity = i
	}
	if p.identity == nil {
		return nil, err
	}
	return p.identity, nil
}

// watchFiles looks at the files until ctx ends. It closes first once they could be read. What changes has the session replaced
// by one that it was made for, with no break.
func (p *Proxy) watchFiles(ctx context.Context, first chan<- struct{}) error {
	tick := time.NewTicker(p.cfg.lookInterval)
	defer tick.Stop()
	var used [sha256.Size]byte // what a session has been asked for with
	for begun := false; ; {
		if !p.tunnelRuns.Load() {
			p.health.Beat()
		}
		i, err := readIdentity(p.cfg.Dir)
		p.judge(i, err)
		if err == nil && i.sum != used {
			used = i.sum
			p.mu.Lock()
			p.identity = i
			p.mu.Unlock()
			p.log.Info("certificate taken", "tenant", i.id.Tenant, "notAfter", i.cert.Leaf.NotAfter.UTC().Format(time.RFC3339), "broker", i.broker)
			if begun {
				p.client.Renew()
				p.client.Wake() // what was refused may have been the old one
			} else {
				begun = true
				close(first)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// judge sets the certificate's condition by what was read, or why not.
func (p *Proxy) judge(i *identity, err error) {
	last := p.known()
	switch {
	case err != nil && last.roots == nil:
		what := err.Error()
		if errors.Is(err, os.ErrNotExist) {
			what += ": `broker egress issue` writes it"
		}
		p.health.Set(condCertificate, health.False, "Unreadable", what+"; looked for again every "+p.cfg.lookInterval.String())
		return
	case err != nil:
		p.health.Set(condCertificate, health.False, "Unreadable", err.Error()+"; what was read before is used until it ends, on "+
			last.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
		return
	}
	end := i.cert.Leaf.NotAfter
	p.metrics.expiry.Set(float64(end.Unix()))
	if time.Now().After(end) {
		p.health.Set(condCertificate, health.False, "Expired", "the certificate in "+p.cfg.Dir+" expired on "+end.UTC().Format(time.RFC3339)+
			": put another there, of `broker egress issue`; it is taken without a restart")
		return
	}
	p.health.Set(condCertificate, health.True, "Valid", "API server of tenant "+i.id.Tenant+", good until "+end.UTC().Format(time.RFC3339))
}
