package enrollapi

import (
	"encoding/json"
	"testing"
	"time"
)

// What is on the wire is what agents in the field send and read for years: the names stay.
func TestWireNames(t *testing.T) {
	at := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	for _, tc := range []struct {
		v    any
		want string
	}{
		{EnrolRequest{Token: "t", CSR: "c", Hostname: "h", Serial: "s", Version: "v"}, `{"token":"t","tenant":"","csr":"c","hostname":"h","serial":"s","version":"v"}`},
		{RenewRequest{CSR: "c"}, `{"csr":"c"}`},
		{RenewRequest{CSR: "c", Version: "v"}, `{"csr":"c","version":"v"}`},
		{EnrolResponse{Tenant: "a", Node: "n", TrustDomain: "d", Certificate: "c", CABundle: "b", Time: at},
			`{"tenant":"a","node":"n","trustDomain":"d","certificate":"c","caBundle":"b","time":"2031-02-03T04:05:06Z"}`},
		{Error{Code: CodePending, Message: "m", RetryAfter: 30}, `{"code":"pending","message":"m","retryAfter":30}`},
		{Error{Code: CodeRefused, Message: "m"}, `{"code":"refused","message":"m"}`},
	} {
		got, err := json.Marshal(tc.v)
		if err != nil || string(got) != tc.want {
			t.Errorf("%T is %s, %v; want %s", tc.v, got, err, tc.want)
		}
	}
}

func TestCodes(t *testing.T) {
	for code, want := range map[ErrorCode]struct {
		status    int
		retryable bool
	}{
		CodeRefused: {403, false}, CodePending: {202, false}, CodeNameTaken: {409, false}, CodeBadRequest: {400, false},
		CodeUnavailable: {503, true}, CodeOverloaded: {429, true}, CodeInternal: {500, true}, "of a later version": {500, false},
	} {
		if code.HTTPStatus() != want.status || code.Retryable() != want.retryable {
			t.Errorf("%s: %d, retryable %v; want %+v", code, code.HTTPStatus(), code.Retryable(), want)
		}
	}
}
