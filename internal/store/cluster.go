package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
)

// Cluster is an etcd cluster that is somebody else's to run, for more than one broker.
type Cluster struct {
	// Endpoints are its members' client URLs, https://host:port; http only where everybody who can reach it may read all secrets.
	Endpoints []string
	// CAFile verifies the members; CertFile and KeyFile are the client's, read anew for each connection. Needed with https.
	CAFile, CertFile, KeyFile string
	// Prefix goes before each key, for a cluster that others use too. Default: none.
	Prefix string
}

const (
	// answerTimeout bounds each call to a cluster: one that lost its quorum answers to nothing.
	answerTimeout = 10 * time.Second
	// A connection to a member that is silent for their sum is given up for another's.
	clusterKeepAlive, clusterKeepAliveTimeout = 10 * time.Second, 5 * time.Second
)

// openCluster is Open for a cluster. It waits until that answers.
func openCluster(ctx context.Context, cfg Config, log *slog.Logger) (*Store, error) {
	c := cfg.Cluster
	begin := time.Now()
	tlsConfig, err := c.tls()
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	// Its log tells of each attempt; what matters of them is in the errors of calls.
	client, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, TLS: tlsConfig, Context: context.Background(), Logger: zapLogger(slog.New(slog.DiscardHandler), newGuard()),
		DialTimeout: answerTimeout, DialKeepAliveTime: clusterKeepAlive, DialKeepAliveTimeout: clusterKeepAliveTimeout,
	})
	if err != nil {
		return nil, fmt.Errorf("open store: etcd at %s: %w", strings.Join(c.Endpoints, ", "), err)
	}
	if c.Prefix != "" {
		client.KV = namespace.NewKV(client.KV, c.Prefix)
		client.Watcher = namespace.NewWatcher(client.Watcher, c.Prefix)
		client.Lease = namespace.NewLease(client.Lease, c.Prefix)
	}
	s := &Store{client: client, log: log, unlock: func() {}, cluster: strings.Join(c.Endpoints, ", ")}
	s.closing, s.cancel = context.WithCancel(context.Background())
	stop := progress(log, "etcd at "+s.cluster, begin)
	defer stop()
	for {
		_, err := s.Get(ctx, "/")
		if err == nil || errors.Is(err, ErrNotFound) {
			log.Info("store is open", "etcd", s.cluster, "took", time.Since(begin).Round(time.Millisecond))
			return s, nil
		}
		if ctx.Err() != nil || !errors.Is(err, errNoAnswer) {
			return nil, errors.Join(fmt.Errorf("open store: %w", err), s.Close())
		}
		log.Warn("the etcd cluster does not answer, trying on", "etcd", s.cluster, "err", err)
	}
}

func (c *Cluster) tls() (*tls.Config, error) {
	secure := 0
	for _, e := range c.Endpoints {
		if strings.HasPrefix(e, "https://") {
			secure++
		}
	}
	switch {
	case len(c.Endpoints) == 0:
		return nil, errors.New("no endpoint of the etcd cluster is configured")
	case secure == 0:
		return nil, nil
	case secure < len(c.Endpoints):
		return nil, errors.New("some endpoints of the etcd cluster are https and some are not: want all of one kind")
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("CA of the etcd cluster: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA of the etcd cluster: %s holds no certificate", c.CAFile)
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("client certificate for the etcd cluster: %w", err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil { // now, and not as a connection that is never made
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() },
	}, nil
}

// errNoAnswer is what a call to a cluster ends with that got none in time.
var errNoAnswer = errors.New("no answer from the etcd cluster")

// bounded gives a call to a cluster its time.
func (s *Store) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.cluster == "" {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, answerTimeout, fmt.Errorf("%w at %s within %s: is it up, has it a quorum, do the certificates fit?", errNoAnswer, s.cluster, answerTimeout))
}

// because makes of a call's error, if its time was up, why that is.
func (s *Store) because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errNoAnswer) {
		return cause
	}
	return err
}
