package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

const (
	kills     = 200
	killBoxes = 16
	// killTTL is the shortest life that a broker gives certificates.
	killTTL = 10 * time.Minute
)

// killClocks are what an agent's clock may be off by from a start to the next. By the later two its certificate is due
// for renewal, or has expired, also the one that it was given a second ago: so it renews at each start and often after.
var killClocks = []time.Duration{0, 8 * time.Minute, 30 * time.Minute}

// TestFault42KillLoop: agents and the broker are killed at random moments of enrolment and renewal, 200 times. In the
// end each box has the one identity that its first key got, and each token was used as often as boxes came with it.
func TestFault42KillLoop(t *testing.T) {
	t.Parallel() // with the identity suite: this one mostly waits
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("MOORING_E2E_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	s := newSuite(t, "kill loop")
	s.logf("MOORING_E2E_SEED=%d repeats these moments, as far as a machine does", seed)
	k := &killLoop{suite: s, rand: rand.New(rand.NewPCG(seed, 42))}
	s.runCases(t, []testCase{
		{"ControlPlane", true, k.begin},
		{fmt.Sprintf("Kills%d", kills), true, k.loop},
		{"OneIdentityEach", false, k.settled},
		{"TokensUsedOnce", false, k.tokens},
		{"Files", false, k.files},
	})
}

type killLoop struct {
	*suite
	rand  *rand.Rand
	boxes []*killBox
}

// killBox is a loose agent and what has been seen of it.
type killBox struct {
	*harness.LooseAgent
	key          string          // hash of the node's key when it was seen first
	certificates map[string]bool // that were seen on its disk
}

// shared describes the token that half of the boxes share.
const shared = "shared by half of the boxes"

func (k *killLoop) begin(_ *suite, t *testing.T) {
	var err error
	k.platform, err = k.env.StartPlatform(k.ctx)
	must(t, err)
	k.platform.NodeCertificateTTL = killTTL
	must(t, k.platform.StartBroker(k.ctx))
	k.acme, err = k.platform.NewTenant(k.ctx, "acme")
	must(t, err)
	must(t, k.acme.Admit(k.ctx))
	must(t, k.acme.Start(k.ctx))
	common, err := k.acme.Token(k.ctx, "--description", shared, "--uses", strconv.Itoa(killBoxes/2))
	must(t, err)
	for n := range killBoxes {
		bundle, transport := common, []string{"quic", "tcp"}[n/2%2]
		if n%2 == 0 {
			bundle, err = k.acme.Token(k.ctx, "--description", fmt.Sprintf("loose-%d", n))
			must(t, err)
		}
		a, err := k.platform.NewLooseAgent(n, transport, bundle)
		must(t, err)
		k.boxes = append(k.boxes, &killBox{LooseAgent: a, certificates: map[string]bool{}})
	}
}

// loop kills an agent, then the broker, and so on. A new box comes now and then, so that there is always one that
// enrols; all that are there run at once.
func (k *killLoop) loop(_ *suite, t *testing.T) {
	limit := time.Now().Add(8 * time.Minute) // it takes two on a quiet machine
	for n := range kills {
		if k.ctx.Err() != nil || time.Now().After(limit) {
			t.Fatalf("only %d of %d kills in time", n, kills)
		}
		if n%2 == 1 {
			k.sleep(1400 * time.Millisecond)
			k.platform.Broker.Kill()
			k.sleep(50 * time.Millisecond)
			must(t, k.platform.LaunchBroker())
			continue
		}
		// Each box has its turn of being the newest for a dozen kills, and is the one that is killed most.
		newest := min(n*killBoxes/(kills*4/5), killBoxes-1)
		b := k.boxes[newest]
		if b.Proc != nil && k.rand.IntN(3) == 0 {
			b = k.boxes[k.rand.IntN(newest+1)]
		}
		if b.Proc == nil {
			must(t, b.Start(k.clock()))
		}
		k.sleep([]time.Duration{100 * time.Millisecond, 1200 * time.Millisecond}[k.rand.IntN(2)])
		b.Proc.Kill()
		k.look(t, b)
		must(t, b.Start(k.clock()))
	}
	must(t, k.platform.AwaitBroker(k.ctx))
}

func (k *killLoop) clock() time.Duration { return killClocks[k.rand.IntN(len(killClocks))] }

// sleep lets a random time pass: the moment of the kill is the point of it.
func (k *killLoop) sleep(limit time.Duration) {
	time.Sleep(time.Duration(k.rand.Int64N(int64(limit))))
}

// look reads what a kill has left of a box's state: whole files, and the key that was there before.
func (k *killLoop) look(t *testing.T, b *killBox) {
	t.Helper()
	if err := wholeFiles(b.Dir); err != nil {
		t.Errorf("%s: %v", b.Name, err)
	}
	key, err := os.ReadFile(filepath.Join(b.Dir, "state", "node.key"))
	if errors.Is(err, fs.ErrNotExist) && b.key == "" {
		return // killed before it had made one
	}
	must(t, err)
	sum := sha256.Sum256(key)
	if now := hex.EncodeToString(sum[:]); b.key == "" {
		b.key = now
	} else if b.key != now {
		t.Errorf("%s has another key than at first", b.Name)
		b.key = now
	}
	if id, err := b.identity(); err == nil {
		b.certificates[id.Certificate] = true
	}
}

type killIdentity struct{ Tenant, Node, Certificate, CABundle string }

func (b *killBox) identity() (id killIdentity, err error) {
	data, err := os.ReadFile(filepath.Join(b.Dir, "state", "identity.json"))
	if err == nil {
		err = json.Unmarshal(data, &id)
	}
	return id, err
}

// wholeFiles returns an error if a file of the directory is empty or cut short. What a killed writer had not put in
// its place yet is no file of the agent's.
func wholeFiles(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.Contains(d.Name(), ".mooring-tmp-") || d.Name() == "lock" {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		switch {
		case len(strings.Trim(string(data), "\x00")) == 0:
			return fmt.Errorf("%s is empty", path)
		case strings.HasSuffix(path, ".json"):
			if !json.Valid(data) {
				return fmt.Errorf("%s is no JSON: %q", path, data)
			}
		case strings.Contains(string(data), "-----BEGIN") && !strings.HasSuffix(path, ".yaml") && !strings.HasSuffix(path, ".kubeconfig"):
			for rest := data; len(strings.TrimSpace(string(rest))) > 0; {
				var block *pem.Block
				if block, rest = pem.Decode(rest); block == nil {
					return fmt.Errorf("%s is no PEM: %q", path, data)
				}
			}
		}
		return nil
	})
}

// settled: with the killing over and the clocks right, each box works, as itself, unattended.
func (k *killLoop) settled(_ *suite, t *testing.T) {
	k.platform.Broker.Kill() // so that it knows of no session of an agent that is gone
	must(t, k.platform.StartBroker(k.ctx))
	for _, b := range k.boxes {
		b.Proc.Kill()
		k.look(t, b)
		must(t, b.Start(0))
	}
	k.wait(t, "all boxes to be connected", 90*time.Second, func(ctx context.Context) error {
		nodes, err := k.connected(ctx)
		if err == nil && len(nodes) != killBoxes {
			err = fmt.Errorf("%d of %d are connected: %v", len(nodes), killBoxes, nodes)
		}
		return err
	})
	all, err := k.nodeRecords(k.ctx)
	must(t, err)
	if len(all) != killBoxes {
		t.Errorf("there are %d node records, want %d", len(all), killBoxes)
	}
	byName := map[string]brokerNode{}
	for _, n := range all {
		byName[n.Name] = n
	}
	seen := 0
	for _, b := range k.boxes {
		k.look(t, b)
		id, err := b.identity()
		must(t, err)
		var status struct {
			Identity struct{ Node, Fingerprint string }
		}
		text, err := b.Status(k.ctx)
		must(t, err)
		must(t, json.Unmarshal([]byte(text), &status))
		if n := byName[b.Name]; id.Node != b.Name || status.Identity.Node != b.Name || n.KeyHash == "" || n.KeyHash != status.Identity.Fingerprint {
			t.Errorf("%s: the disk says it is %q, its agent %q with key %s, the broker knows it by %s",
				b.Name, id.Node, status.Identity.Node, status.Identity.Fingerprint, n.KeyHash)
		}
		seen += len(b.certificates)
	}
	// Else the kills did not fall into what they are meant for.
	log, err := os.ReadFile(k.platform.Broker.Log)
	must(t, err)
	k.note("%d certificates were seen; the broker enrolled %d times and renewed %d times", seen,
		strings.Count(string(log), `msg="node enrolled`), strings.Count(string(log), `msg="node's certificate renewed`))
	if seen < 2*killBoxes {
		t.Errorf("%d certificates of %d boxes were seen: there were hardly any renewals", seen, killBoxes)
	}
}

// brokerNode is a line of `broker node list -o json`.
type brokerNode struct {
	Name, KeyHash string
	Connected     bool
}

func (s *suite) nodeRecords(ctx context.Context) ([]brokerNode, error) {
	out, err := s.platform.BrokerCommand(ctx, "node", "list", "-o", "json")
	if err != nil {
		return nil, err
	}
	var nodes []brokerNode
	return nodes, json.Unmarshal([]byte(out), &nodes)
}

// connected are the names of the nodes that have a session.
func (s *suite) connected(ctx context.Context) (names []string, err error) {
	nodes, err := s.nodeRecords(ctx)
	for _, n := range nodes {
		if n.Connected {
			names = append(names, n.Name)
		}
	}
	return names, err
}

// tokens: a use for each box, however often it had to ask.
func (k *killLoop) tokens(_ *suite, t *testing.T) {
	out, err := k.platform.BrokerCommand(k.ctx, "token", "list", "-o", "json")
	must(t, err)
	var tokens []struct {
		Description string
		UsedBy      []string
	}
	must(t, json.Unmarshal([]byte(out), &tokens))
	got := map[string][]string{}
	for _, token := range tokens {
		slices.Sort(token.UsedBy)
		got[token.Description] = token.UsedBy
	}
	for n, b := range k.boxes {
		if n%2 == 0 {
			if used := got[b.Name]; len(used) != 1 || !strings.HasSuffix(used[0], b.Name) {
				t.Errorf("the token of %s was used by %q", b.Name, used)
			}
		}
	}
	if used := got[shared]; len(used) != killBoxes/2 || len(slices.Compact(used)) != killBoxes/2 {
		t.Errorf("the shared token was used by %q, want each of %d boxes once", used, killBoxes/2)
	}
}

// files: nothing is left half-written anywhere.
func (k *killLoop) files(_ *suite, t *testing.T) {
	for _, b := range k.boxes {
		b.Proc.Stop()
		if err := wholeFiles(b.Dir); err != nil {
			t.Errorf("%s: %v", b.Name, err)
		}
		k.look(t, b)
	}
}
