package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// flattenKubeconfig makes a kubeconfig self-contained: only its current context, with the files that
// it names read in. It is done here and not in the broker, which need not see the caller's files.
func flattenKubeconfig(source string, data []byte) ([]byte, error) {
	cfg, err := clientcmd.Load(data)
	if err != nil {
		return nil, fmt.Errorf("%s is not a kubeconfig: %w", source, err)
	}
	if err := clientcmdapi.MinifyConfig(cfg); err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", source, err)
	}
	if source != "-" {
		abs, err := filepath.Abs(source)
		if err != nil {
			return nil, err
		}
		for _, c := range cfg.Clusters {
			c.LocationOfOrigin = abs
		}
		for _, a := range cfg.AuthInfos {
			a.LocationOfOrigin = abs
		}
	}
	if err := clientcmd.ResolveLocalPaths(cfg); err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", source, err)
	}
	if err := clientcmdapi.FlattenConfig(cfg); err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", source, err)
	}
	// FlattenConfig reads certificates and keys in, but leaves a token's file where it is.
	for _, a := range cfg.AuthInfos {
		if a.TokenFile == "" {
			continue
		}
		token, err := readInput(strings.NewReader(""), a.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", source, err)
		}
		a.Token, a.TokenFile = strings.TrimSpace(string(token)), ""
	}
	return clientcmd.Write(*cfg)
}
