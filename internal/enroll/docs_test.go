package enroll

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// The operators' table of rights is the one that is granted.
func TestRightsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/tenants.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, r := range Rights(true) {
		where, what, _ := strings.Cut(r.String(), ": ")
		row := fmt.Sprintf("| %s | %s | %s |\n", where, what, r.Why)
		if !strings.Contains(string(page), row) {
			t.Errorf("docs/tenants.md lacks the row\n%s", row)
		}
		rows++
	}
	_, table, _ := strings.Cut(string(page), "| where | what | why |\n|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	if n := strings.Count(table, "\n") + 1; n != rows {
		t.Errorf("docs/tenants.md has %d rows of rights, want %d", n, rows)
	}
}
