package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/admin"
)

// fakeCA is a broker whose two nodes take their time: each look at it is one step further.
type fakeCA struct {
	status admin.CAStatus
	looks  int
	steps  []string
	stuck  bool // no node ever does anything
	fickle bool // a third node comes just when the switch is asked for
}

func (f *fakeCA) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	step := strings.TrimPrefix(r.URL.Path, "/v1/ca")
	if step != "" {
		if step == "/switch" && f.fickle {
			f.fickle = false
			w.WriteHeader(http.StatusConflict)
			json.NewEncoder(w).Encode(admin.Error{Message: "not yet"})
			return
		}
		f.steps = append(f.steps, step[1:])
		f.looks = 0
		f.status.Phase = step[1:]
		f.status.CAs = []admin.CA{{Role: "issuer", Hash: "sha256:a"}, {Role: "next", Hash: "sha256:b"}}
	}
	done := min(f.looks, 2)
	if f.stuck {
		done = 0
	}
	f.looks++
	f.status.Connected, f.status.Trusting, f.status.Renewed = 2, done, done
	f.status.WaitingFor = []string{"acme/edge-1", "acme/edge-2"}[done:]
	json.NewEncoder(w).Encode(f.status)
}

// rotate runs `broker ca rotate` against it.
func (f *fakeCA) rotate(t *testing.T, set func(*rotation)) (progress string, err error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f}
	go srv.Serve(l)
	defer srv.Close()
	var out bytes.Buffer
	r := &rotation{client: admin.NewClient(socket), progress: &out, interval: time.Millisecond, timeout: time.Minute}
	if set != nil {
		set(r)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err = r.run(ctx)
	return out.String(), err
}

func TestRotateGoesOnFromWhereItWas(t *testing.T) {
	for phase, want := range map[string][]string{"settled": {"add", "switch"}, "add": {"switch"}, "switch": nil} {
		f := &fakeCA{status: admin.CAStatus{Phase: phase}}
		progress, err := f.rotate(t, nil)
		if err != nil || !slices.Equal(f.steps, want) {
			t.Errorf("from %s: steps %v, %v; want %v", phase, f.steps, err, want)
		}
		if !strings.Contains(progress, "2 of 2 connected nodes have a certificate of the new CA") || !strings.HasSuffix(progress, "`broker ca retire`\n") {
			t.Errorf("from %s: progress %q", phase, progress)
		}
	}
}

func TestRotateWaitsForWhoComesInBetween(t *testing.T) {
	f := &fakeCA{status: admin.CAStatus{Phase: "settled"}, fickle: true}
	if _, err := f.rotate(t, nil); err != nil || !slices.Equal(f.steps, []string{"add", "switch"}) {
		t.Errorf("steps %v, %v", f.steps, err)
	}
}

func TestRotateGivesUp(t *testing.T) {
	f := &fakeCA{status: admin.CAStatus{Phase: "settled"}, stuck: true}
	_, err := f.rotate(t, func(r *rotation) { r.timeout = 20 * time.Millisecond })
	if err == nil || !strings.Contains(err.Error(), "acme/edge-1, acme/edge-2") || !strings.Contains(err.Error(), "--force") || !slices.Equal(f.steps, []string{"add"}) {
		t.Errorf("steps %v, %v; want the missing nodes and what to do", f.steps, err)
	}
	if _, err := f.rotate(t, func(r *rotation) { r.force = true }); err != nil || !slices.Equal(f.steps, []string{"add", "switch"}) {
		t.Errorf("with force: steps %v, %v", f.steps, err)
	}
}
