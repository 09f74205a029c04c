package join

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"

	"k8s.io/client-go/rest"

	"github.com/mooring-edge/mooring/internal/durable"
)

// maxNode bounds what is read of a Node object, in bytes: 50 names of images are the most of it.
const maxNode = 1 << 20

// PodCIDRs returns where the addresses of the node's pods are taken from, by the node's own object at its API server:
// asked with the kubelet's certificate, over TLS with that server, by way of the local API endpoint. None: the control
// plane has not given the node any (yet).
func (j *Joiner) PodCIDRs(ctx context.Context, id *Identity) ([]netip.Prefix, error) {
	rec, err := j.Ready(id)
	if err != nil {
		return nil, err
	}
	pair, err := durable.ReadFile(j.paths.ClientCertificate(), maxNode)
	if err != nil {
		return nil, err
	}
	conf, err := rest.TLSConfigFor(&rest.Config{TLSClientConfig: rest.TLSClientConfig{
		ServerName: rec.APIServerName, CAData: []byte(rec.APIServerCA), CertData: pair, KeyData: pair,
	}})
	if err != nil {
		return nil, err
	}
	return j.readNode(ctx, conf, rec.Node)
}

func (j *Joiner) readNode(ctx context.Context, conf *tls.Config, node string) ([]netip.Prefix, error) {
	conf.Time = j.clock.Now
	client := &http.Client{Timeout: j.cfg.RequestTimeout, Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+j.cfg.APIAddress+"/api/v1/nodes/"+url.PathEscape(node), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "edge-agent")
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("read Node %s at %s (tunnel down, or API server away?): %w", node, j.cfg.APIAddress, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxNode))
	if err != nil {
		return nil, fmt.Errorf("read Node %s: %w", node, err)
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, nil // its kubelet has not registered yet
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read Node %s: the API server says %s", node, resp.Status)
	}
	// These fields alone: the typed object would weigh more than all else here.
	var obj struct {
		Spec struct {
			PodCIDR  string   `json:"podCIDR"`
			PodCIDRs []string `json:"podCIDRs"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(body, &obj); err != nil {
		return nil, fmt.Errorf("read Node %s: %w", node, err)
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
