package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/mooring-edge/mooring/bench/internal/shore"
	"github.com/mooring-edge/mooring/internal/admin"
	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/internal/pki"
)

const (
	// tokenUses is how many nodes one token makes: its record lists them all and is written with each.
	tokenUses = 100
	// enrolWorkers is how many nodes are enrolled at a time.
	enrolWorkers = 16
	enrolTimeout = 30 * time.Second
)

// identity is what a node has of its enrolment. As JSON it goes to another process.
type identity struct {
	Node        string `json:"node"`
	TrustDomain string `json:"trustDomain"`
	Certificate string `json:"certificate"` // PEM, leaf first
	Key         string `json:"key"`         // PEM
	CABundle    string `json:"caBundle"`    // PEM

	past   lineage // of all its sessions
	cert   tls.Certificate
	roots  *x509.CertPool
	trusts []string // the hashes of the CAs in CABundle
}

// complete parses the identity's parts. Those of one bundle share what is made of it.
func (i *identity) complete(known *sync.Map) (err error) {
	if i.cert, err = tls.X509KeyPair([]byte(i.Certificate), []byte(i.Key)); err != nil {
		return fmt.Errorf("certificate of %s: %w", i.Node, err)
	}
	type bundle struct {
		roots  *x509.CertPool
		trusts []string
	}
	b, ok := known.Load(i.CABundle)
	if !ok {
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM([]byte(i.CABundle)) {
			return fmt.Errorf("CA bundle of %s: no certificate in it", i.Node)
		}
		trusts, err := hashesOf([]byte(i.CABundle))
		if err != nil {
			return err
		}
		b, _ = known.LoadOrStore(i.CABundle, bundle{roots, trusts})
	}
	i.roots, i.trusts = b.(bundle).roots, b.(bundle).trusts
	return nil
}

// completeAll completes the identities of a file.
func completeAll(ids []*identity) error {
	var known sync.Map
	for _, id := range ids {
		if err := id.complete(&known); err != nil {
			return err
		}
	}
	return nil
}

// enrol makes n nodes by tokens and the enrolment protocol, as a box does it.
func enrolAll(ctx context.Context, s *shore.Shore, n int, progress func(done int)) ([]*identity, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(enrolWorkers)
	var (
		all   = make([]*identity, n)
		known sync.Map
		mu    sync.Mutex // guards the following
		done  int
	)
	for from := 0; from < n; from += tokenUses {
		uses := min(tokenUses, n-from)
		g.Go(func() error {
			token, err := s.Client.CreateToken(ctx, admin.TokenRequest{Tenant: shore.TenantName, Uses: uses, TTL: config.Duration{Duration: time.Hour}})
			if err != nil {
				return fmt.Errorf("make a token: %w", err)
			}
			for i := from; i < from+uses; i++ {
				id, err := enrolOne(ctx, token.Bundle, fmt.Sprintf("edge-%05d", i))
				if err == nil {
					err = id.complete(&known)
				}
				if err != nil {
					return err
				}
				mu.Lock()
				all[i] = id
				done++
				progress(done)
				mu.Unlock()
			}
			return nil
		})
	}
	return all, g.Wait()
}

// enrolOne enrols one node; a refusal that may pass is tried again.
func enrolOne(ctx context.Context, bundle config.JoinBundle, name string) (*identity, error) {
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	keyPEM, key, err := pki.MakeKeyPEM()
	if err != nil {
		return nil, err
	}
	csr, err := pki.MakeCSR(key, name)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(enrollapi.EnrolRequest{
		Token: bundle.Token, Tenant: bundle.Tenant, CSR: string(csr), Hostname: name, Version: "bench",
	})
	if err != nil {
		return nil, err
	}
	conf := pki.ClientTLS(nil, pki.VerifyPinned(bundle.CACertHashes, time.Now, nil))
	conf.NextProtos = []string{enrollapi.ALPN}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
	for {
		var answer enrollapi.EnrolResponse
		err := post(ctx, client, "https://"+bundle.Endpoint+enrollapi.PathEnrol, body, &answer)
		if err == nil {
			return &identity{
				Node: answer.Node, TrustDomain: answer.TrustDomain, Certificate: answer.Certificate, Key: string(keyPEM), CABundle: answer.CABundle,
			}, nil
		}
		var refused *enrollapi.Error
		if !errors.As(err, &refused) || !refused.Code.Retryable() {
			return nil, fmt.Errorf("enrol %s: %w", name, err)
		}
		select {
		case <-time.After(time.Duration(max(1, refused.RetryAfter)) * time.Second):
		case <-ctx.Done():
			return nil, fmt.Errorf("enrol %s: %w", name, err)
		}
	}
}

func post(ctx context.Context, client *http.Client, url string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, enrollapi.MaxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		refused := &enrollapi.Error{}
		if json.Unmarshal(data, refused) != nil || refused.Code == "" {
			return fmt.Errorf("the broker answered %s", resp.Status)
		}
		return refused
	}
	return json.Unmarshal(data, answer)
}
