package pki

import (
	"crypto/tls"
	"errors"
	"slices"
)

// Verify decides about a peer once its certificates are known; VerifyPeer and
// VerifyPinned make them.
type Verify = func(tls.ConnectionState) error

// ClientTLS returns the configuration of a client whose peer is a broker: TLS
// 1.3, no session tickets, the peer verified by verify alone.
//
// certificate is called at each handshake that asks for one, so that a renewed
// certificate is used at once; nil means that the client has none. A nil
// verify refuses every peer. NextProtos and ServerName are the caller's to
// set; the server name is sent as SNI and plays no part in trust.
func ClientTLS(certificate func() (*tls.Certificate, error), verify Verify) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// crypto/tls can only verify a server by DNS name or address, and a
		// broker is known by its SPIFFE ID: it is reached through load
		// balancers, by address, by names that change. So the built-in
		// verification is off and VerifyConnection takes its place: it runs in
		// every handshake, before any byte of ours is sent, verifies chain,
		// dates, usage and identity, and a nil verify fails closed. This is the
		// only place in the project that may say InsecureSkipVerify.
		InsecureSkipVerify:     true,
		VerifyConnection:       orRefuse(verify),
		SessionTicketsDisabled: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if certificate == nil {
				return &tls.Certificate{}, nil
			}
			return certificate()
		},
	}
}

// ClientAuth says what a server asks of its clients.
type ClientAuth int

// The zero value is the strict one.
const (
	ClientRequired ClientAuth = iota // no certificate, no connection
	ClientOptional                   // verified if given; PeerIdentity fails for those without
	ClientNone                       // not asked for
	// ClientUnverified asks for a certificate and lets the handshake pass whatever comes, expired or of an unknown CA.
	// TLS proves that the client holds its key, and nothing more is known: whoever serves must verify, for each
	// request that takes a certificate into account. ServerTLS's verify is not used.
	ClientUnverified
)

// ServerOptions are the choices of ServerTLS; the zero value is the strict one.
type ServerOptions struct {
	Clients ClientAuth
	// AllowTLS12 admits TLS 1.2 too, for a kube-apiserver that calls the
	// egress; everything else is 1.3.
	AllowTLS12 bool
	// ClassicKeyExchange agrees on keys with X25519 or an elliptic curve of NIST's, and with the hybrids of these and ML-KEM, which take
	// longer, only if the client offers nothing else. It is for clients that are near, connect often, and send what is encrypted already.
	ClassicKeyExchange bool
	NextProtos         []string
}

// ServerTLS returns the configuration of a broker's listener: session tickets
// disabled (a ticket would outlive a revocation), clients verified by verify
// alone in every handshake. certificate is called at each handshake. A nil
// verify refuses every client that presents a certificate or must.
func ServerTLS(certificate func() (*tls.Certificate, error), verify Verify, o ServerOptions) *tls.Config {
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             slices.Clone(o.NextProtos),
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return certificate()
		},
	}
	if o.AllowTLS12 {
		cfg.MinVersion = tls.VersionTLS12
	}
	switch o.Clients {
	case ClientNone:
		verify = nil
	case ClientUnverified:
		cfg.ClientAuth = tls.RequestClientCert
		verify = unlessAbsent(presented)
	case ClientOptional:
		cfg.ClientAuth = tls.RequestClientCert
		verify = unlessAbsent(orRefuse(verify))
	default:
		// "Any" means only that crypto/tls leaves the verification to us.
		cfg.ClientAuth = tls.RequireAnyClientCert
		verify = orRefuse(verify)
	}
	cfg.VerifyConnection = verify
	if o.ClassicKeyExchange {
		cfg.GetConfigForClient = preferClassic(cfg.Clone())
	}
	return cfg
}

// classic are the key exchanges of ServerOptions.ClassicKeyExchange. In which order they are tried is crypto/tls's matter.
var classic = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}

// preferClassic returns a tls.Config.GetConfigForClient that has only classic, for who can do with that. It takes cfg.
func preferClassic(cfg *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	cfg.CurvePreferences = classic
	return func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		for _, id := range hello.SupportedCurves {
			if slices.Contains(classic, id) {
				return cfg, nil
			}
		}
		return nil, nil // the configuration that this is in
	}
}

func orRefuse(v Verify) Verify {
	if v != nil {
		return v
	}
	return func(tls.ConnectionState) error { return errors.New("verify peer: no verification is configured") }
}

func unlessAbsent(v Verify) Verify {
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return v(cs)
	}
}
