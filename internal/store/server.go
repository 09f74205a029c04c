package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

const (
	quotaBytes = 1 << 30 // 100,000 nodes with some KiB each, and their history
	maxTxnOps  = 128     // what an etcd cluster allows by default
	// compaction keeps this much history for watches that fall behind.
	compaction = "1h"
	// defragMiB of unused space are given back at a start.
	defragMiB = 64

	// One member has nobody to wait for: the ticks only decide how soon it
	// elects itself. etcd wants the election to be five ticks or more.
	tickMs     = 20
	electionMs = 100

	progressEvery = 5 * time.Second
	memberName    = "mooring"
	etcdDir       = "etcd" // inside Config.Dir
)

// start runs the server on a prepared dir and waits until it serves.
func start(ctx context.Context, c Config, log *slog.Logger) (*embed.Etcd, error) {
	begin := time.Now()
	stop := progress(log, c.Dir, begin)
	defer stop()
	guard := newGuard()
	srv, err := launch(serverConfig(c, log, guard), guard)
	if err != nil {
		return nil, err
	}
	select {
	case <-srv.Server.ReadyNotify():
	case <-guard.failed:
		return nil, damaged(guard.err)
	case <-srv.Server.StopNotify():
		srv.Close()
		return nil, errors.New("the embedded server stopped during its start")
	case <-ctx.Done():
		srv.Close()
		return nil, fmt.Errorf("wait for the embedded server: %w", context.Cause(ctx))
	}
	guard.started.Store(true)
	log.Info("store is open", "dir", c.Dir, "took", time.Since(begin).Round(time.Millisecond))
	return srv, nil
}

// launch is embed.StartEtcd with damage reported as an error: etcd answers to
// damaged files by a panic or by exiting the process, on a goroutine of its own
// choice. What it opened until then stays open.
func launch(cfg *embed.Config, guard *guard) (*embed.Etcd, error) {
	var srv *embed.Etcd
	var err error
	done := make(chan struct{})
	go func() {
		defer func() {
			if p := recover(); p != nil {
				guard.fail(fmt.Errorf("%v", p))
				return
			}
			select {
			case <-guard.failed: // by Goexit: done must not close
			default:
				close(done)
			}
		}()
		if srv, err = embed.StartEtcd(cfg); err != nil {
			err = damaged(err) // the configuration is constant, so it is the files
		}
	}()
	select {
	case <-done:
		return srv, err
	case <-guard.failed:
		return nil, damaged(guard.err)
	}
}

func serverConfig(c Config, log *slog.Logger, guard *guard) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name = memberName
	cfg.Dir = filepath.Join(c.Dir, etcdDir)
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapLogger(log, guard))

	// No listeners of any kind. The member still needs an address to be listed
	// under; this one leads nowhere and is never dialled.
	nowhere := []url.URL{{Scheme: "unix", Host: memberName}}
	cfg.ListenPeerUrls, cfg.ListenClientUrls, cfg.ListenClientHttpUrls = nil, nil, nil
	cfg.AdvertisePeerUrls, cfg.AdvertiseClientUrls = nowhere, nowhere
	cfg.InitialCluster = cfg.InitialClusterFromName(memberName)
	cfg.EnableGRPCGateway = false

	cfg.TickMs, cfg.ElectionMs = tickMs, electionMs
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, compaction
	cfg.QuotaBackendBytes = c.quota
	// Entries of the log that are kept in memory for followers which lag behind: there are none. The default of 5000
	// is 6 to 12 MB.
	cfg.SnapshotCatchUpEntries = 100
	cfg.BootstrapDefragThresholdMegabytes = defragMiB
	cfg.MaxTxnOps = maxTxnOps
	return cfg
}

// progress logs that the start takes its time, until stop is called.
func progress(log *slog.Logger, dir string, begin time.Time) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				log.Warn("store is still opening", "dir", dir, "for", time.Since(begin).Round(time.Second))
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}
