package join

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/enrollapi"
)

// Record is what the control plane wants of this node's kubelet: the broker's answer without its secret.
// It is kept so that a box that boots while it is cut off can make its kubelet's files.
type Record struct {
	Tenant               string            `json:"tenant"`
	Node                 string            `json:"node"`
	APIServerCA          string            `json:"apiServerCA"`
	APIServerName        string            `json:"apiServerName"`
	KubeletConfiguration json.RawMessage   `json:"kubeletConfiguration"`
	Labels               map[string]string `json:"labels,omitempty"`
	Taints               []enrollapi.Taint `json:"taints,omitempty"`
	JoinedAt             time.Time         `json:"joinedAt"`
	// ClientIssuer is the key ID of who issued the kubelet's client certificate, which need not be
	// APIServerCA.
	ClientIssuer string `json:"clientIssuer,omitempty"`
}

// loadRecord returns the record if it is there, whole, and about this identity.
func (j *Joiner) loadRecord(id *Identity) (*Record, error) {
	data, err := durable.ReadFile(j.recordFile(), 2*enrollapi.MaxAnswer)
	if err != nil {
		return nil, err
	}
	rec := &Record{}
	if err := json.Unmarshal(data, rec); err != nil {
		return nil, fmt.Errorf("%s: %w: %v", j.recordFile(), durable.ErrTorn, err)
	}
	if rec.Tenant != id.Tenant || rec.Node != id.Node {
		return nil, fmt.Errorf("%s is about node %s of tenant %s: %w", j.recordFile(), rec.Node, rec.Tenant, fs.ErrNotExist)
	}
	return rec, rec.check()
}

// check finds what would keep the kubelet's files from being made.
func (r *Record) check() error {
	switch {
	case len(pemCertificates([]byte(r.APIServerCA))) == 0:
		return errors.New("no certificate in the API server's CA")
	case r.APIServerName == "":
		return errors.New("no name to verify the API server by")
	}
	return nil
}

func (j *Joiner) saveRecord(rec *Record) error {
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	return j.cfg.WriteFile(j.recordFile(), append(data, '\n'), 0o600)
}
