package layers

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"testing"
)

// crypto/tls's own verification is turned off in one place, which says why and what takes its place
// (docs/decisions/0004-brokers-are-known-by-identity.md).
func TestVerificationIsTurnedOffInOnePlace(t *testing.T) {
	var found []string
	for name, p := range load(t) {
		files, err := filepath.Glob(filepath.Join(p.Dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if ok, _ := filepath.Match("*_test.go", filepath.Base(file)); ok {
				continue
			}
			tree, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(tree, func(n ast.Node) bool {
				if setsSkipVerify(n) {
					found = append(found, name+"/"+filepath.Base(file))
				}
				return true
			})
		}
	}
	if len(found) != 1 || found[0] != "internal/pki/tls.go" {
		t.Errorf("InsecureSkipVerify is set in %q; want it in internal/pki/tls.go once, and nowhere else: use pki.ClientTLS", found)
	}
}

// setsSkipVerify finds the field in a composite literal or on the left of an assignment; to look at it
// is allowed.
func setsSkipVerify(n ast.Node) bool {
	isField := func(e ast.Expr) bool {
		if sel, ok := e.(*ast.SelectorExpr); ok {
			e = sel.Sel
		}
		id, ok := e.(*ast.Ident)
		return ok && id.Name == "InsecureSkipVerify"
	}
	switch n := n.(type) {
	case *ast.KeyValueExpr:
		return isField(n.Key)
	case *ast.AssignStmt:
		return slices.ContainsFunc(n.Lhs, isField)
	}
	return false
}
