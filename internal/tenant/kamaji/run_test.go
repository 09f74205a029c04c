package kamaji

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/mooring-edge/mooring/pkg/health"
)

// TestRunWithoutManagementCluster: a management API that is away is a condition of the broker's and does not end it, and the
// end of ctx ends all that was begun.
func TestRunWithoutManagementCluster(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close() // nobody answers there
	w := newWorld(t)
	tracker := health.New(health.Config{Logger: w.c.cfg.Logger})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- w.c.Run(ctx, RunConfig{
			REST: &rest.Config{Host: "https://" + address}, LeaseNamespace: "mooring-system", Health: tracker,
			LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second,
		})
	}()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c := tracker.Get(ConditionKamaji)
		if c.Status == health.False && strings.Contains(c.Message, "connection refused") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", c)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
