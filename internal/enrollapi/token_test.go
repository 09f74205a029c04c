package enrollapi

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

func TestTokenRoundTrip(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		tok := NewToken()
		got, err := ParseToken(tok.String())
		if err != nil || got != tok {
			t.Fatalf("ParseToken(%q) = %v, %v", tok, got, err)
		}
		if seen[tok.ID] {
			t.Fatalf("id %s came twice in 100 tokens", tok.ID)
		}
		seen[tok.ID] = true
	}
}

func TestParseTokenRefuses(t *testing.T) {
	good := NewToken()
	for name, in := range map[string]string{
		"empty":         "",
		"no dot":        good.ID + good.Secret,
		"short secret":  good.ID + "." + good.Secret[1:],
		"long secret":   good.String() + "a",
		"second dot":    good.ID + "." + good.Secret + ".",
		"short id":      good.ID[1:] + "." + good.Secret,
		"upper case":    strings.ToUpper(good.String()),
		"not in set":    "0000000000." + good.Secret,
		"with newline":  good.String() + "\n",
		"kubeadm token": "abcdef.0123456789abcdef",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseToken(in)
			if err == nil {
				t.Fatalf("ParseToken(%q) took it", in)
			}
			if in != "" && strings.Contains(err.Error(), in) {
				t.Errorf("the error quotes the input, which may be a secret: %v", err)
			}
		})
	}
}

func TestTokenIsNotLogged(t *testing.T) {
	var b bytes.Buffer
	tok := NewToken()
	slog.New(slog.NewTextHandler(&b, nil)).Info("created", "token", tok)
	if strings.Contains(b.String(), tok.Secret) {
		t.Fatalf("the log holds the secret: %s", b.String())
	}
	if !strings.Contains(b.String(), tok.ID) {
		t.Fatalf("the log lacks the id: %s", b.String())
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken().String())
	f.Add("a.b")
	f.Add("..")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err == nil && tok.String() != s {
			t.Fatalf("ParseToken(%q).String() = %q", s, tok)
		}
	})
}
