package main

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"os"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// rootsPath is where Go looks for the system's roots first.
const rootsPath = "etc/ssl/certs/ca-certificates.crt"

// roots is Mozilla's list of certificate authorities as PEM: what https in tracing.endpoint, and an HTTP proxy that is
// spoken to by TLS, are verified by. The tunnel itself trusts the broker's own CA only. Roots whose trust Mozilla has
// bounded (by time, for instance) are left out, as a PEM file can't carry the bound.
func roots() ([]byte, error) {
	var b bytes.Buffer
	for r := range bundle.Roots() {
		if r.Constraint != nil {
			continue
		}
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate}); err != nil {
			return nil, err
		}
	}
	if b.Len() == 0 {
		return nil, fmt.Errorf("the module of root certificates has none")
	}
	return b.Bytes(), nil
}

// licenseOf reads the repository's licence, which goes along with the programs.
func licenseOf(root string) ([]byte, error) {
	return os.ReadFile(root + "/LICENSE")
}
