package config

import (
	"errors"
	"testing"
)

func TestKonnectivity(t *testing.T) {
	for doc, path := range map[string]string{
		"front: {publicEndpoint: 'e:443'}\nkonnectivity: {enabled: true}":                                             "konnectivity.domain",
		"front: {publicEndpoint: 'e:443', domain: edge.example}\nkonnectivity: {enabled: true, domain: edge.example}": "konnectivity.domain",
		"front: {publicEndpoint: 'e:443'}\nkonnectivity: {domain: A.example}":                                         "konnectivity.domain",
		"front: {publicEndpoint: 'e:443'}\nkonnectivity: {serviceAccount: agent}":                                     "konnectivity.serviceAccount",
		"front: {publicEndpoint: 'e:443'}\nkonnectivity: {audience: ''}":                                              "konnectivity.audience",
	} {
		_, err := DecodeBroker("f", []byte("apiVersion: "+APIVersion+"\nkind: "+KindBroker+"\n"+doc+"\n"))
		var e *Error
		if !errors.As(err, &e) || len(e.Problems) != 1 || e.Problems[0].Path != path {
			t.Errorf("%s: %v, want a problem of %s", doc, err, path)
		}
	}
	c := DefaultKonnectivity()
	if u := c.User(); u != "system:serviceaccount:kube-system:konnectivity-agent" {
		t.Errorf("user %s", u)
	}
	if z := c.Zone("edge.example"); z != "konnectivity.edge.example" {
		t.Errorf("zone %s", z)
	}
}
