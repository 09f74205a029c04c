package kamaji

import (
	"encoding/json"
	"fmt"
)

// record is what is in a spec by our doing: the annotation mooring.dev/applied. Whatever is not named here is the user's.
type record struct {
	Args        []string `json:"args,omitempty"`
	SANs        []string `json:"certSANs,omitempty"`
	Volumes     []string `json:"volumes,omitempty"`    // by name
	Mounts      []string `json:"mounts,omitempty"`     // by path
	Containers  []string `json:"containers,omitempty"` // by name
	Annotations []string `json:"annotations,omitempty"`
	// Addresses are the preferred address types of before, if they were others; Replaced tells that there are.
	Addresses []any `json:"addresses,omitempty"`
	Replaced  bool  `json:"replaced,omitempty"`
	// Made are the fields that were not there, outermost first: they go when they are empty again.
	Made []string `json:"made,omitempty"`
}

func (r record) encode() (string, error) {
	out, err := json.Marshal(r)
	return string(out), err
}

// readRecord reads the annotation; nil if there is none.
func readRecord(annotations map[string]string) (*record, error) {
	text, ok := annotations[annotationApplied]
	if !ok {
		return nil, nil
	}
	var r record
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return nil, fmt.Errorf("annotation %s can't be read: %w", annotationApplied, err)
	}
	return &r, nil
}
