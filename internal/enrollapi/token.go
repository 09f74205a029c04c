package enrollapi

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

const (
	tokenIDLen = 10
	// TokenSecretLen is how many characters a token's secret has.
	TokenSecretLen = 32
	// OverwrittenSecret is what `edge-agent seal` puts in a secret's place, on the box. It is none that NewToken makes, but by a chance
	// of one in 2^160.
	OverwrittenSecret = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
	// 32 characters, so that a random byte's low five bits pick one without bias; no 0, 1, l, o.
	tokenAlphabet = "abcdefghijkmnpqrstuvwxyz23456789"
)

// Token is an enrolment token, written "id.secret". The id is public and names the token in lists
// and logs; the secret has 160 bits and is shown once.
type Token struct {
	ID, Secret string
}

// NewToken makes a random token.
func NewToken() Token {
	return Token{ID: randomString(tokenIDLen), Secret: randomString(TokenSecretLen)}
}

// String is the form that ParseToken reads. It holds the secret: never log it.
func (t Token) String() string { return t.ID + "." + t.Secret }

// LogValue keeps the secret out of logs.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.ID) }

var errTokenForm = fmt.Errorf("not an enrolment token: want %d letters or digits, a dot, and %d more", tokenIDLen, TokenSecretLen)

// ParseToken reads "id.secret". The error never quotes the input, which may hold a secret.
func ParseToken(s string) (Token, error) {
	id, secret, ok := strings.Cut(s, ".")
	if !ok {
		return Token{}, errTokenForm
	}
	if err := ValidTokenID(id); err != nil {
		return Token{}, errTokenForm
	}
	if len(secret) != TokenSecretLen || !isTokenText(secret) {
		return Token{}, errTokenForm
	}
	return Token{ID: id, Secret: secret}, nil
}

// ValidTokenID checks the public half alone.
func ValidTokenID(id string) error {
	if len(id) != tokenIDLen || !isTokenText(id) {
		return errors.New("not a token id: want " + fmt.Sprint(tokenIDLen) + " letters or digits (see `broker token list`)")
	}
	return nil
}

func isTokenText(s string) bool {
	for i := range len(s) {
		if strings.IndexByte(tokenAlphabet, s[i]) < 0 {
			return false
		}
	}
	return true
}

func randomString(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	for i := range b {
		b[i] = tokenAlphabet[b[i]&31]
	}
	return string(b)
}
