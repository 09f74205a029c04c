// Package config decodes, defaults and validates Mooring's v1alpha1 kinds: AgentConfiguration,
// BrokerConfiguration, TenantConfiguration and JoinBundle.
//
// Decoding is strict: unknown keys, wrong types and bad values are all reported at once, each with
// its path, and nothing is started on a file with a problem. It opens no sockets and keeps no state.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// APIVersion is the group and version of every kind here.
const APIVersion = "mooring.dev/v1alpha1"

// Kinds.
const (
	KindAgent      = "AgentConfiguration"
	KindBroker     = "BrokerConfiguration"
	KindJoinBundle = "JoinBundle"
	KindTenant     = "TenantConfiguration"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// TypeMeta says what a document is.
type TypeMeta struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

// Log says how the program logs, always to standard error.
type Log struct {
	// Level is debug, info, warn or error. Default info.
	Level string `json:"level"`
	// Format is text or json. Default text.
	Format string `json:"format"`
}

// Duration is a time.Duration written as Go does: "25s", "168h".
type Duration struct{ time.Duration }

// MarshalJSON writes the string form.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.Duration.String()) }

// UnmarshalJSON reads the string form only: a bare number would leave its unit to guess.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf(`want a duration such as "25s", got %s`, b)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf(`want a duration such as "25s", got %q`, s)
	}
	d.Duration = v
	return nil
}

// Problem is one thing wrong with a document.
type Problem struct {
	Path    string // e.g. "tunnel.transport"
	Message string
}

// Error is all that is wrong with one document. It is never empty.
type Error struct {
	Source   string // the file's path, or what stands for it
	Problems []Problem
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d problem", e.Source, len(e.Problems))
	if len(e.Problems) > 1 {
		b.WriteByte('s')
	}
	for _, p := range e.Problems {
		if p.Path == "" {
			fmt.Fprintf(&b, "\n  %s", p.Message)
		} else {
			fmt.Fprintf(&b, "\n  %s: %s", p.Path, p.Message)
		}
	}
	return b.String()
}

// problems collects what validation finds.
type problems []Problem

func (p *problems) add(path, format string, args ...any) {
	*p = append(*p, Problem{path, fmt.Sprintf(format, args...)})
}

// check adds err, if there is one, at path.
func (p *problems) check(path string, err error) {
	if err != nil {
		p.add(path, "%v", err)
	}
}

// decode reads a document of the given kind over the defaults already in into, then lets validate
// look at what came out. Fields that are wrong in form keep their default, so that validation can
// still report on the others.
func decode(source string, data []byte, kind string, into any, validate func(*problems)) error {
	var found problems
	clean, err := strict(data, kind, into, &found)
	if err != nil {
		return &Error{source, []Problem{{"", err.Error()}}}
	}
	if err := json.Unmarshal(clean, into); err != nil {
		return &Error{source, append(found, Problem{"", err.Error()})}
	}
	validate(&found)
	if len(found) > 0 {
		return &Error{source, found}
	}
	return nil
}

// strict checks a document's form against the type of into and returns it as JSON without the parts
// that do not fit, each of which is added to found. An error means that there is nothing to go on with.
func strict(data []byte, kind string, into any, found *problems) ([]byte, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	asJSON, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("not valid YAML: %v", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(asJSON)))
	dec.UseNumber()
	var doc any
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("not valid YAML: %v", err)
	}
	m, ok := doc.(map[string]any)
	if !ok || len(m) == 0 {
		shows := "`config print-defaults` prints one"
		switch kind {
		case KindJoinBundle:
			shows = "`broker token create` prints one"
		case KindTenant:
			shows = "docs/tenants.md shows one"
		}
		return nil, fmt.Errorf("empty: want a %s (%s)", kind, shows)
	}
	if got, _ := m["apiVersion"].(string); got != APIVersion {
		found.add("apiVersion", "want %q, got %q", APIVersion, got)
	}
	if got, _ := m["kind"].(string); got != kind {
		found.add("kind", "want %q, got %q", kind, got)
		if got == KindAgent || got == KindBroker || got == KindJoinBundle || got == KindTenant {
			// Another kind's keys would all be reported as unknown: noise around the one real problem.
			return json.Marshal(map[string]any{})
		}
	}
	shape("", doc, into, found)
	return json.Marshal(doc)
}

// readFile reads a whole configuration file, bounded.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

// IsAbsent tells whether a load failed only because the file is not there.
func IsAbsent(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// Marshal writes any of the kinds as YAML.
func Marshal(v any) ([]byte, error) { return yaml.Marshal(v) }
