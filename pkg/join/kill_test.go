package join

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/pkg/join/jointest"
)

// childEnv makes the test binary a box that joins, then renews its certificate and takes bundles, until killed.
const childEnv = "JOIN_TEST_BOX"

// order is what a box under test is told.
type order struct {
	StateDir, RootDir, Endpoint, Token, Hash, API string
	Bundles                                       []string
}

func (o order) config() Config {
	return Config{
		StateDir: o.StateDir, Hostname: "edge-1", APIAddress: o.API, Kubelet: Kubelet{RootDir: o.RootDir, Port: 10250},
		Bundle: func() (Bundle, error) {
			return Bundle{Endpoint: o.Endpoint, Tenant: jointest.Tenant, Token: o.Token, CACertHashes: []string{o.Hash}}, nil
		},
		BackoffMin: time.Millisecond, BackoffMax: 10 * time.Millisecond, RefusedRetry: 10 * time.Millisecond,
	}
}

// box is the killed process's main.
func box(data string) {
	var o order
	if err := json.Unmarshal([]byte(data), &o); err != nil {
		panic(err)
	}
	fmt.Println("started")
	j := New(o.config())
	ctx := context.Background()
	id, err := j.Enrol(ctx)
	if err != nil {
		panic(err)
	}
	fmt.Println("enrolled")
	rec, err := j.Bootstrap(ctx, id)
	if err != nil {
		panic(err)
	}
	r, err := j.Render(rec)
	if err != nil {
		panic(err)
	}
	if _, err := r.Write(); err != nil {
		panic(err)
	}
	fmt.Println("joined")
	for n := 0; ; n++ {
		if _, err := j.Renew(ctx); err != nil {
			panic(err)
		}
		if _, err := j.SaveBundle(o.Bundles[n%len(o.Bundles)]); err != nil {
			panic(err)
		}
		fmt.Println("renewed")
	}
}

// runAndKill lets a box live for a while after its first word; it returns how far it came.
func runAndKill(t *testing.T, o order, life time.Duration) (said string) {
	t.Helper()
	data, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(data))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); said = lines.Text() {
		if said == "" {
			// The moment within the work is what varies, so it is random on purpose.
			time.AfterFunc(life, func() { _ = cmd.Process.Kill() })
		}
	}
	if err := cmd.Wait(); err == nil || said == "" || cmd.ProcessState.Exited() {
		t.Fatalf("the box ended by itself, after %q: %v", said, err)
	}
	return said
}

// TestFault42KilledAnywhere kills a box at random moments of enrolment, renewal and the saving of bundles. What
// it finds at the next start is what was there before or what came after; key and name stay.
func TestFault42KilledAnywhere(t *testing.T) {
	const boxes, kills = 6, 11
	reached := map[string]int{}
	for range boxes {
		s := newSite(t)
		next := newCA(t, s.broker.CA.TrustDomain())
		o := order{
			StateDir: s.cfg.StateDir, RootDir: s.cfg.Kubelet.RootDir, Endpoint: s.broker.Endpoint, Token: s.broker.Token.String(),
			Hash: s.broker.CA.Hash(), API: s.api.Address,
			Bundles: []string{string(s.broker.CA.CertPEM()), string(s.broker.CA.CertPEM()) + string(next.CertPEM())},
		}
		key, enrolled := "", false
		for k := range kills {
			said := runAndKill(t, o, time.Duration(rand.IntN([]int{4_000, 12_000, 40_000}[k%3]))*time.Microsecond)
			reached[said]++
			enrolled = enrolled || said != "started"
			key = checkKilled(t, s, o, key, enrolled)
		}
		if key == "" {
			continue // it never came to make a key
		}
		s.checkJoined(key)
		if left, _ := filepath.Glob(filepath.Join(o.StateDir, "*.damaged-*")); len(left) != 0 {
			t.Errorf("set aside: %v", left)
		}
	}
	t.Logf("killed after it said: %v", reached)
}

// checkKilled looks at what a killed box left. key is what it was known to have before.
func checkKilled(t *testing.T, s *site, o order, key string, enrolled bool) string {
	t.Helper()
	j := New(o.config())
	now, err := j.Fingerprint()
	switch {
	case errors.Is(err, fs.ErrNotExist) && key == "" && !enrolled:
		return ""
	case err != nil:
		t.Fatalf("the key: %v", err)
	case key != "" && now != key:
		t.Fatalf("the key was %s, is %s", key, now)
	}
	if _, _, owner := s.broker.Counts(); owner != "" && owner != now {
		t.Fatalf("the broker knows the node by %s, its key is %s", owner, now)
	}
	id, err := j.LoadIdentity()
	if err == nil {
		if id.CABundle != o.Bundles[0] && id.CABundle != o.Bundles[1] || id.Fingerprint() != now {
			t.Fatalf("the identity is neither the old nor the new: %+v", id)
		}
	} else if enrolled || !errors.Is(err, ErrNotEnrolled) || strings.Contains(err.Error(), "any more") {
		t.Fatalf("enrolled %t, and the identity: %v", enrolled, err)
	}
	if data, err := os.ReadFile(filepath.Join(o.StateDir, "clock")); err == nil {
		if _, err := parseMark(data); err != nil {
			t.Fatalf("the clock's mark: %v", err)
		}
	}
	return now
}

// TestFault42PowerCutAtEachWrite cuts the power at each file that is written, on the way from a fresh box to a
// renewed one: the file is the old one or the new one then, and nothing that follows reaches the disk, although
// the box may live on for a while and talk to its broker.
func TestFault42PowerCutAtEachWrite(t *testing.T) {
	for n := 0; ; n++ {
		cut := false
		for _, lastIsWritten := range []bool{false, true} {
			s := newSite(t)
			cut = s.liveUntil(n, lastIsWritten)
			key := ""
			if fp, err := New(s.cfg).Fingerprint(); err == nil {
				key = fp
			}
			id := s.mustAll()
			if key != "" && id.Fingerprint() != key {
				t.Errorf("write %d: the key was %s, is %s", n, key, id.Fingerprint())
			}
			if _, _, owner := s.broker.Counts(); owner != id.Fingerprint() {
				t.Errorf("write %d: the broker knows %s, the key is %s", n, owner, id.Fingerprint())
			}
			if _, err := New(s.cfg).Renew(t.Context()); err != nil {
				t.Errorf("write %d: %v", n, err)
			}
		}
		if !cut {
			if n < 8 {
				t.Errorf("only %d writes were seen", n)
			}
			return
		}
	}
}

// liveUntil lives a box's life with a disk that takes no more after n writes; it tells whether that came.
func (s *site) liveUntil(n int, lastIsWritten bool) (cut bool) {
	cfg := s.cfg
	cfg.StopOnRefusal = true
	writes := 0
	cfg.WriteFile = func(path string, data []byte, perm fs.FileMode) error {
		writes++
		if writes <= n || writes == n+1 && lastIsWritten {
			return durable.WriteFile(path, data, perm)
		}
		cut = true
		return errStopped
	}
	if _, err := s.all(cfg); err != nil {
		return cut
	}
	j := New(cfg)
	if _, err := j.Renew(s.t.Context()); err != nil {
		return cut
	}
	_, _ = j.SaveBundle(string(s.broker.CA.CertPEM()) + string(newCA(s.t, s.broker.CA.TrustDomain()).CertPEM()))
	return cut
}
