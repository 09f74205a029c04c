package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/enrollapi"
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

// debPackage is where user-data has a plain Debian get edge-agent from; zero = the image has it.
type debPackage struct {
	url    string
	sha256 string // hex
}

// check says what is wrong with what was given for a format.
func (p debPackage) check(format string) error {
	if p == (debPackage{}) {
		return nil
	}
	u, err := url.Parse(p.url)
	switch {
	case format != formatCloudInit:
		return fmt.Errorf("--package is for --format %s", formatCloudInit)
	case p.url == "" || p.sha256 == "":
		return errors.New("--package and --package-sha256 go together: a box installs nothing unseen (`sha256sum FILE` says it)")
	case err != nil || (u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "file") || u.User != nil || !strings.HasSuffix(u.Path, ".deb") ||
		strings.ContainsAny(p.url, " \t\r\n\"'\\`;"):
		return fmt.Errorf("--package: want the URL (http, https, file) of a .deb, without user and password, got %q", p.url)
	}
	if sum, err := hex.DecodeString(p.sha256); err != nil || len(sum) != sha256.Size {
		return fmt.Errorf("--package-sha256: want 64 hex digits, got %q", p.sha256)
	}
	return nil
}

// printBundle writes the join bundle; as YAML with a word to the person who will find the file.
func printBundle(w io.Writer, format string, r admin.TokenResponse, pkg debPackage) error {
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
		_, err = io.WriteString(w, cloudInit(r, bundle, pkg))
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

1. On the box, put this into %s (owner root, mode 0600):

%s
2. On the box:  systemctl enable --now edge-agent
   Once the box is enrolled the file is not needed any more; the packages remove it then (edge-agent seal).
3. Here:  %s
`, id, purpose(r), id, bundlePath, indent(bundle, "   "), next)
}

// cloudInit is a whole user-data, for an image with edge-agent in it or for a plain Debian that installs it. Nothing is waited
// for: the agent may wait for an operator, the installation for the network, and cloud-init would wait with them.
//
// Its bootcmd runs at each boot, before files are written. A secret that was overwritten (edge-agent seal) is not written again: what is looked
// for must not be found in the bootcmd itself, which is in the same file.
func cloudInit(r admin.TokenResponse, bundle string, pkg debPackage) string {
	overwritten := fmt.Sprintf(`%c\{%d\}`, enrollapi.OverwrittenSecret[0], len(enrollapi.OverwrittenSecret))
	what, files, unit := "an image that has edge-agent", "", "edge-agent.service"
	written := bundlePath + " " + cloudCommands
	if pkg != (debPackage{}) {
		what, unit = "Debian, where it installs edge-agent", installUnit
		written += " " + installUnitPath
		files = fmt.Sprintf(`  - path: %s
    owner: root:root
    permissions: '0644'
    content: |
%s`, installUnitPath, indent(pkg.unit(), "      "))
	}
	return fmt.Sprintf(`#cloud-config
# %s. Holds a secret.
# For %s.
bootcmd:
  # cloud-init writes once, and the power may go before that is on the disk. What is empty on a box that is not enrolled is written again.
  - >-
    test -s %s || grep -qs '%s' %s/user-data.txt ||
    for f in %s; do
    test -s $f || (cd %s/sem && rm -f config_write_files config_runcmd config_scripts_user); done
write_files:
  - path: %s
    owner: root:root
    permissions: '0600'
    content: |
%s%sruncmd:
  - [systemctl, daemon-reload]
  - [systemctl, enable, %s]
  - [systemctl, start, --no-block, %s]
`, purpose(r), what, identityPath, overwritten, cloudInstance, written, cloudInstance, bundlePath, indent(bundle, "      "), files, unit, unit)
}

const (
	installUnit     = "edge-agent-install.service"
	installUnitPath = "/etc/systemd/system/" + installUnit
	// cloudInstance is where cloud-init keeps what it has, and what it has done.
	cloudInstance = "/var/lib/cloud/instance"
	cloudCommands = cloudInstance + "/scripts/runcmd" // made of the user-data's
	// identityPath is there once a box is enrolled: an agent's, by default.
	identityPath = "/var/lib/mooring/identity.json"
)

// unit is a service that installs the package, once: cloud-init itself tries once in a box's life, at a moment when there may be
// no network, or power for long enough. apt-helper, which each Debian has, takes nothing with another checksum. The package
// starts edge-agent by itself.
func (p debPackage) unit() string {
	const file = "/var/cache/edge-agent.deb"
	escaped := strings.NewReplacer("%", "%%", "$", "$$").Replace(p.url)
	return fmt.Sprintf(`[Unit]
Description=Install edge-agent
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=oneshot
Environment=DEBIAN_FRONTEND=noninteractive
ExecStart=/usr/bin/dpkg --configure -a
ExecStart=/usr/lib/apt/apt-helper download-file %s %s SHA256:%s
ExecStart=/usr/bin/apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends %s
ExecStart=/usr/bin/systemctl disable %s
ExecStart=/usr/bin/rm -f %s
Restart=on-failure
RestartSec=10s

[Install]
WantedBy=multi-user.target
`, escaped, file, strings.ToLower(p.sha256), file, installUnit, file)
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
