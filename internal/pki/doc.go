// Package pki is the broker's certificate authority and the one translation
// between an identity and a certificate.
//
// An identity is a SPIFFE URI in the certificate's subject alternative names
// and nothing else: no header, no common name, no DNS name makes one. The
// package issues (CA; Keyring, which rotates CAs), reads (ParseIdentity, PeerIdentity), verifies
// (VerifyPeer, VerifyPinned) and builds the TLS configurations that use the
// verification (ClientTLS, ServerTLS).
//
// It knows no HTTP, no files and no goroutines; the time is always handed in.
// All functions are safe for concurrent use, and neither a CA nor a Keyring changes once made.
package pki
