package config

import (
	"errors"
	"strings"
	"testing"
)

func TestSharedStoreAndPeers(t *testing.T) {
	const base = head + "BrokerConfiguration\nfront: {publicEndpoint: 'e:443'}\n"
	const etcd = "store: {etcd: {endpoints: ['https://a:1', 'https://b:1'], caFile: /a, certFile: /b, keyFile: /c, prefix: /edge}}\n"
	if c, err := DecodeBroker("f", []byte(base+etcd+"peer: {listen: ':8134', advertise: '10.0.0.1:8134'}\n")); err != nil || len(c.Store.Etcd.Endpoints) != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	for doc, path := range map[string]string{
		"store: {etcd: {endpoints: ['etcd:2379']}}":                                                        "store.etcd.endpoints",
		"store: {etcd: {endpoints: ['https://etcd']}}":                                                     "store.etcd.endpoints",
		"store: {etcd: {endpoints: ['https://a:1', 'http://b:1'], caFile: /a, certFile: /b, keyFile: /c}}": "store.etcd.endpoints",
		"store: {etcd: {endpoints: ['https://a:1'], certFile: /b, keyFile: /c}}":                           "store.etcd.caFile",
		"store: {etcd: {endpoints: ['https://a:1'], caFile: a, certFile: /b, keyFile: /c}}":                "store.etcd.caFile",
		"store: {etcd: {endpoints: ['http://a:1'], prefix: edge}}":                                         "store.etcd.prefix",
		"store: {etcd: {prefix: /edge}}":                                                                   "store.etcd.endpoints",
		"peer: {listen: ':8134'}":                                                                          "peer.listen",
		"peer: {advertise: '10.0.0.1:8134'}":                                                               "peer.listen",
		etcd + "peer: {listen: '8134'}":                                                                    "peer.listen",
		etcd + "peer: {listen: ':8134', advertise: 'here'}":                                                "peer.advertise",
	} {
		_, err := DecodeBroker("f", []byte(base+doc+"\n"))
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v; want a problem of %s", doc, err, path)
		}
	}
}
