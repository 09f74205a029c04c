// Package need decides what becomes of a test whose machine lacks something.
package need

import (
	"os"
	"testing"
)

// Set skips the test if something is missing, and fails it where MOORING_REQUIRE_ALL=1 says that nothing may be.
func Set(t testing.TB, missing error) {
	t.Helper()
	if missing == nil {
		return
	}
	if os.Getenv("MOORING_REQUIRE_ALL") == "1" {
		t.Fatal(missing)
	}
	t.Skip(missing)
}
