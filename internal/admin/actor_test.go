package admin

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestActorIsWhoTheKernelSays(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	served, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	if got, want := Actor(ConnContext(t.Context(), served)), fmt.Sprintf("operator uid=%d", os.Getuid()); got != want {
		t.Errorf("actor %q, want %q", got, want)
	}
	if got := Actor(context.Background()); got != "operator" {
		t.Errorf("actor %q of a call with no known user", got)
	}
}
