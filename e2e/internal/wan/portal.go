package wan

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"sync"
	"time"

	"github.com/mooring-edge/mooring/internal/pki"
)

// portalPort is where a portal listens; the router's rules lead there.
const portalPort = ":8443"

// callerPatience is how long a portal listens to one caller.
const callerPatience = 5 * time.Second

// Portal starts a captive portal on the router, which takes all TCP for itself and drops UDP. Its commands are
//
//	be tls       answers with TLS and a web server's certificate
//	be rogue     answers with TLS and the certificate of a broker: of the same trust domain, of another CA
//	be http      answers anything by a redirect in HTTP
//	be close     closes at once
//	be silent    says nothing
//
// and its event, for each connection, is "caller": Text is what the portal was to it, Err what came of the handshake,
// Bytes how many it said behind that, and Values["certificates"] how many certificates it showed.
func (w *World) Portal() (*Proc, error) {
	p, err := w.startUp(w.Router, "portal", struct{}{})
	if err != nil {
		return nil, err
	}
	return p, w.Router.Nft(`
table inet portal {
	chain in { type nat hook prerouting priority dstnat; iifname "lan*" meta l4proto tcp redirect to ` + portalPort + `; }
	chain through { type filter hook forward priority filter; iifname "lan*" drop; }
}`)
}

// OpenPortal is what happens when somebody has agreed to the terms: everything passes.
func (w *World) OpenPortal() error { return w.Router.Nft("delete table inet portal") }

type portalRole struct {
	*role
	certs map[string]tls.Certificate // by what the portal is

	mu sync.Mutex // guards the following
	is string
}

func portal(ctx context.Context, r *role) error {
	p := &portalRole{role: r, is: "silent"}
	if err := r.configure(&struct{}{}); err != nil {
		return err
	}
	if err := p.makeCertificates(); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", portalPort)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	go r.obey(func(verb, arg string) (Event, error) {
		if verb != "be" {
			return Event{}, fmt.Errorf("no such command as %q", verb)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.is = arg
		return Event{}, nil
	})
	r.say(Event{Name: "listens"})
	for {
		c, err := ln.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		p.mu.Lock()
		is := p.is
		p.mu.Unlock()
		go p.meet(c, is)
	}
}

func (p *portalRole) makeCertificates() error {
	ca, err := pki.NewCA(TrustDomain, time.Now())
	if err != nil {
		return err
	}
	rogue, err := ca.IssueBroker("broker", nil, nil, time.Now(), time.Hour)
	if err != nil {
		return err
	}
	_, key, err := pki.MakeKeyPEM()
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"portal.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	web, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	p.certs = map[string]tls.Certificate{"rogue": rogue, "tls": {Certificate: [][]byte{web}, PrivateKey: key}}
	return err
}

// meet is what a caller finds.
func (p *portalRole) meet(c net.Conn, is string) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(callerPatience))
	e := Event{Name: "caller", Text: is, Values: map[string]float64{}}
	var err error
	switch is {
	case "tls", "rogue":
		tc := tls.Server(c, &tls.Config{GetConfigForClient: func(hi *tls.ClientHelloInfo) (*tls.Config, error) {
			// It agrees to whatever protocol is asked for.
			return &tls.Config{Certificates: []tls.Certificate{p.certs[is]}, ClientAuth: tls.RequestClientCert, NextProtos: hi.SupportedProtos}, nil
		}})
		if err = tc.Handshake(); err == nil {
			e.Bytes, err = io.Copy(io.Discard, tc)
		}
		e.Values["certificates"] = float64(len(tc.ConnectionState().PeerCertificates))
	case "http":
		var b [1]byte
		if _, err = c.Read(b[:]); err == nil {
			_, err = io.WriteString(c, "HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			_, _ = io.Copy(io.Discard, c) // a close with bytes unread would take the answer back
		}
	case "silent":
		_, err = io.Copy(io.Discard, c)
	case "close":
	default:
		err = errors.New("no such portal")
	}
	if err != nil {
		e.Err = err.Error()
	}
	p.say(e)
}
