package join

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestDecodeAnswer(t *testing.T) {
	forbidden := `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"bootstrap \u001b[2J may not","reason":"Forbidden","code":403}`
	for _, c := range []struct {
		what   string
		code   int
		body   string
		reason string
		says   string
	}{
		{"a Status", http.StatusForbidden, forbidden, "Forbidden", "bootstrap ?[2J may not (403)"},
		{"a proxy's page", http.StatusBadGateway, "<html>no</html>", "", "502 Bad Gateway"},
		{"a Status whose code is another than HTTP's", http.StatusConflict, `{"reason":"AlreadyExists","message":"x","code":200}`, "AlreadyExists", "x (409)"},
		{"nothing", http.StatusServiceUnavailable, "", "", "503 Service Unavailable"},
		{"a redirect", http.StatusFound, "", "", "302 Found"},
	} {
		err := decodeAnswer(c.code, []byte(c.body), nil)
		if !isStatus(err, c.code, c.reason) || err.Error() != c.says {
			t.Errorf("%s: %v, want %s", c.what, err, c.says)
		}
		if isStatus(err, c.code, "Other") || isStatus(err, c.code+1, "") {
			t.Errorf("%s passes for something else", c.what)
		}
	}
	var csr certificateRequest
	if err := decodeAnswer(http.StatusOK, []byte(`{"status":{"certificate":"YWJj","conditions":[{"type":"Approved","status":"True"}]}}`), &csr); err != nil {
		t.Fatal(err)
	}
	if string(csr.Status.Certificate) != "abc" || verdict(&csr) != nil {
		t.Errorf("read %+v", csr)
	}
	var status *statusError
	if err := decodeAnswer(http.StatusOK, []byte(`{"status":`), &csr); err == nil || errors.As(err, &status) {
		t.Errorf("half an object: %v", err)
	}
}

// FuzzDecodeAnswer: whatever an API server, or what stands in its place, answers is an object or an error that can be shown.
func FuzzDecodeAnswer(f *testing.F) {
	f.Add(200, []byte(`{"metadata":{"name":"x"},"status":{"conditions":[{"type":"Denied","status":"True","reason":"r","message":"m"}]}}`))
	f.Add(403, []byte(`{"reason":"Forbidden","message":"no"}`))
	f.Add(500, []byte("\xff\x00"))
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		var csr certificateRequest
		err := decodeAnswer(code, body, &csr)
		if code < 200 || code > 299 {
			if !isStatus(err, code, "") {
				t.Fatalf("code %d is %v", code, err)
			}
			if s := err.Error(); !utf8.ValidString(s) || len(s) > maxReason+64 || strings.ContainsRune(s, 0x1b) {
				t.Fatalf("can't be shown: %q", s)
			}
		}
	})
}
