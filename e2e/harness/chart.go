package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/mooring-edge/mooring/e2e/internal/tools"
)

// Chart is the product's Helm chart, and the image that it runs.
type Chart struct {
	// Image is the name of the broker's image, made from the tree; NewChart makes it.
	Image string

	env           *Env
	dir           string
	helm, archive string
}

// NewChart makes the broker's image, and helm if it is not there yet.
func (e *Env) NewChart(ctx context.Context) (*Chart, error) {
	root, err := tools.Root()
	if err != nil {
		return nil, err
	}
	c := &Chart{env: e, dir: filepath.Join(root, "deploy", "helm", "mooring-broker")}
	if c.helm, err = tools.Helm(ctx, root, e.Logf); err != nil {
		return nil, err
	}
	c.archive, c.Image, err = tools.BrokerImage(ctx, root, e.Dir())
	return c, err
}

// Values are the paths of the values files that the chart is tried with.
func (c *Chart) Values() ([]string, error) {
	found, err := filepath.Glob(filepath.Join(c.dir, "ci", "*-values.yaml"))
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("no values files in %s/ci", c.dir)
	}
	return found, err
}

// Value is one of them by its name.
func (c *Chart) Value(name string) string { return filepath.Join(c.dir, "ci", name+"-values.yaml") }

// Render is `helm template` of a release mooring-broker in the namespace mooring.
func (c *Chart) Render(ctx context.Context, args ...string) (string, error) {
	return c.env.output(ctx, c.helm, append([]string{"template", "mooring-broker", c.dir, "--namespace", "mooring"}, args...)...)
}

// ImportImage gives a box the broker's image.
func (c *Chart) ImportImage(ctx context.Context, b *Box) error {
	archive, err := os.Open(c.archive) // the box does not see the run's directory
	if err != nil {
		return err
	}
	defer archive.Close()
	cmd := b.Command(ctx, "ctr", "-n", "k8s.io", "images", "import", "-")
	cmd.Stdin = archive
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("import %s at %s: %w\n%s", c.Image, b.Site.Name, err, out)
	}
	return nil
}

// StartEtcd starts an etcd on the box, which its pods reach at NodeAddress.
func (b *Box) StartEtcd() error {
	if err := copyFile(b.Site.env.Tool("etcd"), filepath.Join(b.bin(), "etcd")); err != nil && !os.IsExist(err) {
		return err
	}
	url := "http://" + NodeAddress + ":2379"
	return b.Start("etcd", "etcd", "--data-dir=/var/lib/etcd", "--listen-client-urls="+url, "--advertise-client-urls="+url,
		"--unsafe-no-fsync", "--log-level=warn")
}
