package httpconnect

import (
	"strings"
	"testing"
)

func FuzzOneLine(f *testing.F) {
	f.Add("no node \"x\"\r\nSet-Cookie: a")
	f.Fuzz(func(t *testing.T, s string) {
		got := oneLine(s)
		if strings.ContainsAny(got, "\r\n\x00") || len(got) > 512 {
			t.Fatalf("oneLine(%q) = %q", s, got)
		}
	})
}
