package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/internal/admin"
)

// The forms that `token create` prints a join bundle in.
const (
	formatYAML      = "yaml"
	formatJSON      = "json"
	formatText      = "text"
	formatCloudInit = "cloud-init"
)

// bundlePath is where edge-agent looks for its bundle if nobody tells it otherwise.
const bundlePath = "/etc/mooring/join.yaml"

// printBundle writes the join bundle; as YAML with a word to the person who will find the file.
func printBundle(w io.Writer, format string, r admin.TokenResponse) error {
	if format == formatJSON {
		return (&output{format: format}).print(w, r.Bundle, nil)
	}
	b, err := yaml.Marshal(r.Bundle)
	if err != nil {
		return err
	}
	bundle := fmt.Sprintf("# %s. Holds a secret.\n# Put it on the box as %s and start edge-agent.\n%s", purpose(r), bundlePath, b)
	switch format {
	case formatText:
		_, err = io.WriteString(w, textBundle(r, string(b)))
	case formatCloudInit:
		_, err = io.WriteString(w, cloudInit(r, bundle))
	default:
		_, err = io.WriteString(w, bundle)
	}
	return err
}

// purpose is what the token does, in one line.
func purpose(r admin.TokenResponse) string {
	until := r.Expires.UTC().Format(time.RFC3339)
	if r.Bundle.Tenant == "" {
		return fmt.Sprintf("Lets %d node(s) ask to enrol until %s; a claim or an operator says where each belongs", r.Uses, until)
	}
	s := fmt.Sprintf("Enrols %d node(s) in tenant %s until %s", r.Uses, r.Bundle.Tenant, until)
	if r.Approval == "manual" {
		s += ", each after an operator approved it"
	}
	return s
}

// textBundle is for a person who reads it and copies.
func textBundle(r admin.TokenResponse, bundle string) string {
	id, _, _ := strings.Cut(r.Bundle.Token, ".")
	next := "broker node list"
	if r.Approval == "manual" {
		next = "broker node pending, then broker node approve FINGERPRINT"
	}
	if r.Bundle.Tenant == "" {
		next = "broker claim create --serial S --tenant NAME for each box, before or after; or broker node pending, then\n          broker node approve FINGERPRINT --tenant NAME"
	}
	return fmt.Sprintf(`Enrolment token %s. %s.
It is a secret, shown only now. Until it expires, `+"`broker token revoke %s`"+` ends it.

1. On the box, put this into %s (owner root, mode 0600) and keep it there:

%s
2. On the box:  systemctl enable --now edge-agent
3. Here:  %s
`, id, purpose(r), id, bundlePath, indent(bundle, "   "), next)
}

// cloudInit is a whole user-data for an image with edge-agent in it. The agent is started without waiting for it: it
// may wait for an operator, and cloud-init would wait with it.
func cloudInit(r admin.TokenResponse, bundle string) string {
	return fmt.Sprintf(`#cloud-config
# %s. Holds a secret.
# For an image that has edge-agent.
write_files:
  - path: %s
    owner: root:root
    permissions: '0600'
    content: |
%sruncmd:
  - [systemctl, enable, edge-agent.service]
  - [systemctl, start, --no-block, edge-agent.service]
`, purpose(r), bundlePath, indent(bundle, "      "))
}

// indent puts prefix before each line of a text that ends with one.
func indent(s, prefix string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(prefix)
		b.WriteString(line)
	}
	return b.String()
}
