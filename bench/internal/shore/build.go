package shore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// LinkerFlags are what programs are linked with: as they are shipped, without symbols. With MOORING_BENCH_SYMBOLS set they have them, for perf(1).
func LinkerFlags() string {
	if os.Getenv("MOORING_BENCH_SYMBOLS") != "" {
		return ""
	}
	return "-s -w"
}

// Build builds one of the product's programs from the tree that this module is in, as `make build` does. environ are variables for the go
// command beside this process' own, such as GOARCH.
func Build(ctx context.Context, to, program string, environ ...string) error {
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/mooring-edge/mooring")
	root, err := list.Output()
	if err != nil {
		return fmt.Errorf("find the product's source (run this in bench/): %w", err)
	}
	dir := strings.TrimSpace(string(root))
	flags, err := os.ReadFile(filepath.Join(dir, "cmd", program, "build.flags"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	args := append([]string{"build", "-trimpath", "-ldflags", LinkerFlags()}, strings.Fields(string(flags))...)
	build := exec.CommandContext(ctx, "go", append(args, "-o", to, "./cmd/"+program)...)
	build.Dir = dir
	build.Env = append(append(os.Environ(), "CGO_ENABLED=0"), environ...)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s in %s: %w\n%s", program, build.Dir, err, out)
	}
	return nil
}
