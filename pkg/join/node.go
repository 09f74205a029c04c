package join

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/mooring-edge/mooring/internal/durable"
)

// PodCIDRs returns where the addresses of the node's pods are taken from, by the node's own object at its API server:
// asked with the kubelet's certificate, over TLS with that server, by way of the local API endpoint. None: the control
// plane has not given the node any (yet).
func (j *Joiner) PodCIDRs(ctx context.Context, id *Identity) ([]netip.Prefix, error) {
	rec, err := j.Ready(id)
	if err != nil {
		return nil, err
	}
	pair, err := durable.ReadFile(j.paths.ClientCertificate(), maxObject)
	if err != nil {
		return nil, err
	}
	api, err := j.newAPIServer(rec.APIServerName, []byte(rec.APIServerCA), pair)
	if err != nil {
		return nil, err
	}
	defer api.close()
	return j.readNode(ctx, api, rec.Node)
}

func (j *Joiner) readNode(ctx context.Context, api *apiServer, node string) ([]netip.Prefix, error) {
	// These fields alone: the typed object would weigh more than all else here.
	var obj struct {
		Spec struct {
			PodCIDR  string   `json:"podCIDR"`
			PodCIDRs []string `json:"podCIDRs"`
		} `json:"spec"`
	}
	err := api.do(ctx, http.MethodGet, "/api/v1/nodes/"+url.PathEscape(node), nil, &obj)
	var status *statusError
	switch {
	case isStatus(err, http.StatusNotFound, ""):
		return nil, nil // its kubelet has not registered yet
	case errors.As(err, &status):
		return nil, fmt.Errorf("read Node %s: the API server says: %w", node, err)
	case err != nil:
		return nil, fmt.Errorf("read Node %s at %s (tunnel down, or API server away?): %w", node, j.cfg.APIAddress, err)
	}
	texts := obj.Spec.PodCIDRs
	if len(texts) == 0 && obj.Spec.PodCIDR != "" {
		texts = []string{obj.Spec.PodCIDR}
	}
	var out []netip.Prefix
	for _, s := range texts {
		p, parseErr := netip.ParsePrefix(s)
		if parseErr != nil || p.Addr().Is4In6() {
			err = errors.Join(err, fmt.Errorf("read Node %s: podCIDR %.80q is no prefix", node, s))
			continue
		}
		out = append(out, p.Masked())
	}
	return out, err
}
