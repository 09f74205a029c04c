package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"github.com/mooring-edge/mooring/internal/tenant"
)

// nodeObjects changes Node objects at a tenant's API server with an administrator's kubeconfig. It is used by the one
// command that was given the kubeconfig: the running broker never sees it.
type nodeObjects struct {
	http *http.Client
	base string
}

var errNoNodeObject = errors.New("there is no such Node object")

const nodeObjectTimeout = 30 * time.Second

func openNodeObjects(stdin io.Reader, tenantName, path string) (*nodeObjects, error) {
	data, err := readInput(stdin, path)
	if err != nil {
		return nil, err
	}
	flat, err := flattenKubeconfig(path, data)
	if err != nil {
		return nil, err
	}
	t, err := tenant.FromKubeconfig(tenantName, flat)
	if err != nil {
		return nil, err
	}
	cfg, err := t.RESTConfig()
	if err != nil {
		return nil, err
	}
	client, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, err
	}
	client.Timeout = nodeObjectTimeout
	return &nodeObjects{http: client, base: strings.TrimSuffix(cfg.Host, "/") + "/api/v1/nodes/"}, nil
}

func (n *nodeObjects) cordon(ctx context.Context, name string) error {
	return n.do(ctx, http.MethodPatch, name, `{"spec":{"unschedulable":true}}`)
}

func (n *nodeObjects) remove(ctx context.Context, name string) error {
	return n.do(ctx, http.MethodDelete, name, "")
}

func (n *nodeObjects) do(ctx context.Context, method, name, body string) error {
	req, err := http.NewRequestWithContext(ctx, method, n.base+url.PathEscape(name), strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	if body != "" {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := n.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // for the error alone
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return errNoNodeObject
	case resp.StatusCode/100 != 2:
		said := struct{ Message string }{string(answer)}
		_ = json.Unmarshal(answer, &said) // a Status, if it is the API server that answers
		return fmt.Errorf("%s node %s: the API server answered %s: %.300s", strings.ToLower(method), name, resp.Status, strings.TrimSpace(said.Message))
	}
	return nil
}
