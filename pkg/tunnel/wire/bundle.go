package wire

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Bounds of a bundle and of a status.
const (
	MaxTrusts        = 16
	maxStatusPayload = 8 << 10
)

// Bundle is the payload of FrameBundle, as JSON: the broker tells the agent
// which CAs vouch for brokers from now on. Fields that are not known are
// ignored. It is as good as the session: the broker was verified in the
// handshake.
type Bundle struct {
	// CABundle is the CAs' certificates, PEM.
	CABundle string `json:"caBundle"`
	// Issuer is the CA that issues now, by the hash of its key ("sha256:" and 64
	// hex digits): an agent whose certificate is of another one renews it.
	Issuer string `json:"issuer"`
}

// Validate checks the bounds. Whether the certificates are any is the receiver's to find out.
func (b Bundle) Validate() error {
	if b.CABundle == "" || len(b.CABundle) > MaxFrame {
		return fmt.Errorf("bundle: CA bundle of %d bytes, want 1 to %d", len(b.CABundle), MaxFrame)
	}
	if err := validHash(b.Issuer); err != nil {
		return fmt.Errorf("bundle: issuer: %w", err)
	}
	return nil
}

// Status is the payload of FrameStatus, as JSON: the agent tells the broker
// what it holds. It is sent in answer to each bundle, and after each renewal.
// Fields that are not known are ignored.
type Status struct {
	// Trusts are the CAs that the agent verifies brokers by, kept on its disk;
	// by the hashes of their keys, at most MaxTrusts.
	Trusts []string `json:"trusts,omitempty"`
	// CertificateIssuer is the CA of the agent's certificate; empty = it can't tell.
	CertificateIssuer string `json:"certificateIssuer,omitempty"`
	// CertificateNotAfter is when that certificate ends; zero = not said.
	CertificateNotAfter time.Time `json:"certificateNotAfter,omitzero"`
}

// Validate checks the bounds.
func (s Status) Validate() error {
	if len(s.Trusts) > MaxTrusts {
		return fmt.Errorf("status: %d CAs trusted, at most %d", len(s.Trusts), MaxTrusts)
	}
	for _, h := range s.Trusts {
		if err := validHash(h); err != nil {
			return fmt.Errorf("status: trusts: %w", err)
		}
	}
	if s.CertificateIssuer == "" {
		return nil
	}
	if err := validHash(s.CertificateIssuer); err != nil {
		return fmt.Errorf("status: certificate's issuer: %w", err)
	}
	return nil
}

// validHash accepts "sha256:" and 64 lower-case hex digits.
func validHash(s string) error {
	digits, ok := strings.CutPrefix(s, "sha256:")
	if raw, err := hex.DecodeString(digits); !ok || err != nil || len(raw) != 32 || strings.ToLower(digits) != digits {
		return fmt.Errorf("%.80q is no hash of a key, want sha256: and 64 hex digits", s)
	}
	return nil
}

// AppendBundle appends a whole frame.
func AppendBundle(b []byte, bundle Bundle) ([]byte, error) {
	if err := bundle.Validate(); err != nil {
		return b, err
	}
	p, err := json.Marshal(bundle)
	if err != nil {
		return b, fmt.Errorf("bundle: %w", err)
	}
	return AppendFrame(b, Frame{Type: FrameBundle, Payload: p})
}

// ParseBundle parses the payload of a bundle.
func ParseBundle(p []byte) (Bundle, error) {
	var b Bundle
	err := parseJSON("bundle", p, MaxFrame, &b)
	if err == nil {
		err = malformed(b.Validate())
	}
	return b, err
}

// AppendStatus appends a whole frame.
func AppendStatus(b []byte, s Status) ([]byte, error) {
	if err := s.Validate(); err != nil {
		return b, err
	}
	p, err := json.Marshal(s)
	if err != nil {
		return b, fmt.Errorf("status: %w", err)
	}
	if len(p) > maxStatusPayload {
		return b, fmt.Errorf("status: %d bytes, at most %d", len(p), maxStatusPayload)
	}
	return AppendFrame(b, Frame{Type: FrameStatus, Payload: p})
}

// ParseStatus parses the payload of a status.
func ParseStatus(p []byte) (Status, error) {
	var s Status
	err := parseJSON("status", p, maxStatusPayload, &s)
	if err == nil {
		err = malformed(s.Validate())
	}
	return s, err
}

// parseJSON decodes a payload of at most limit bytes into v.
func parseJSON(what string, p []byte, limit int, v any) error {
	if len(p) > limit {
		return fmt.Errorf("%s: %w: %d bytes, at most %d", what, ErrMalformed, len(p), limit)
	}
	if err := json.Unmarshal(p, v); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrMalformed, what, err)
	}
	return nil
}

// malformed puts ErrMalformed into the chain of err, if that is one.
func malformed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrMalformed, err)
}
