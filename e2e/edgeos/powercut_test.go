package edgeos

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// defaultCuts is how many boxes lose power if MOORING_POWER_CUTS does not say.
const defaultCuts = 2

// number reads a number of the environment.
func number(name string, otherwise uint64) (uint64, error) {
	text := os.Getenv(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("environment variable %s: %w", name, err)
	}
	return n, nil
}

// powerCuts: boxes lose power at random moments of their first boot and join, each once. Switched on again they become Ready, as one
// node each, with the one use of their token. The time to Ready, and somewhat more, is divided into as many parts as there are cuts, so that few
// cuts are spread as many are; where in its part a cut falls is random.
func (s *suite) powerCuts(t *testing.T, r *row) {
	cuts, err := number("MOORING_POWER_CUTS", defaultCuts)
	must(t, err)
	seed, err := number("MOORING_E2E_SEED", uint64(time.Now().UnixNano()))
	must(t, err)
	s.logf("MOORING_E2E_SEED=%d repeats these moments, as far as a machine does", seed)
	random := rand.New(rand.NewPCG(seed, 6))
	until := s.toReady
	if until == 0 { // these tests were picked alone
		until = s.uncut(t)
		s.note(r, "left alone, Ready after %.0f s", until.Seconds())
	}
	if s.a != nil && strings.HasSuffix(flag.Lookup("test.run").Value.String(), "/PowerCuts") {
		s.a.PowerCut() // it would take a core from those that boot, and no other test was picked that wants it
	}
	until *= time.Duration(len(cutSites)) // as many boot at once, on the same cores
	part := until / time.Duration(max(cuts, 1))
	moments := make(chan cut, cuts)
	for i := range cuts {
		c := cut{number: int(i) + 1, after: time.Duration(i)*part + time.Duration(random.Int64N(int64(part)))}
		if i == cuts-1 {
			c.said = agentStarted
		}
		moments <- c
	}
	close(moments)
	var wg sync.WaitGroup
	errs := make([]error, len(cutSites))
	for i, site := range cutSites {
		wg.Go(func() {
			for c := range moments {
				if errs[i] = s.cutAt(r, site, c); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
}

// cut is the moment at which the box of that number loses power: that long after power-on or, if said is set, when its console says so.
type cut struct {
	number int
	after  time.Duration
	said   string
}

// agentStarted is the moment of the last cut, which is no random one: cloud-init has said that it wrote all, and little of that is on the disk as yet. Seen
// failing by chance, with a random moment there, before user-data had a bootcmd: the join bundle was empty, and never written again.
const agentStarted = `Started edge-agent\.service`

// newCutBox is a box that boots for the first time; it is off.
func (s *suite) newCutBox(site string, number int) (*box, error) {
	serial := fmt.Sprintf("CUT-%04d", number)
	b, err := s.plug(site, serial, s.images.raw("1"))
	if err != nil {
		return nil, err
	}
	userData, err := s.userData(b.node, 1)
	if err != nil {
		return nil, err
	}
	return b, b.insert(userData)
}

// uncut is how long a box takes to Ready that nobody disturbs.
func (s *suite) uncut(t *testing.T) time.Duration {
	b, err := s.newCutBox(cutSites[0], 0)
	must(t, err)
	must(t, b.PowerOn())
	took, err := b.firstReady(s.ctx)
	must(t, err)
	must(t, b.Close())
	return took
}

// cutAt is one box's life.
func (s *suite) cutAt(r *row, site string, c cut) error {
	b, err := s.newCutBox(site, c.number)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.PowerOn(); err != nil {
		return err
	}
	alive, cancel := b.Alive(s.ctx)
	defer cancel()
	if c.said != "" {
		limit, stop := context.WithTimeout(alive, bootLimit)
		_, _, err := b.Console.Wait(limit, 0, regexp.MustCompile(c.said))
		stop()
		if err != nil {
			return fmt.Errorf("power cut %d at %q: %w; the end of its console:\n%s", c.number, c.said, err, b.tail(40))
		}
	} else {
		select {
		case <-time.After(c.after):
		case <-alive.Done():
			return context.Cause(alive)
		}
	}
	c.after = b.since()
	b.PowerCut()
	s.logf("    %s lost power after %.1f s; its last words:\n%s", b.node, c.after.Seconds(), b.tail(2))
	if err := b.PowerOn(); err != nil {
		return err
	}
	ctx, stop := b.Alive(s.ctx)
	defer stop()
	if _, err := s.env.Wait(ctx, b.node+" to be Ready", bootLimit, slowly(func(ctx context.Context) error {
		return s.acme.NodeBack(ctx, b.node, b.Since())
	})); err != nil {
		return fmt.Errorf("power cut %d after %.1f s: %w (%w); the end of its console:\n%s", c.number, c.after.Seconds(), err, context.Cause(ctx), b.tail(40))
	}
	s.note(r, "cut after %.0f s, Ready %.0f s later", c.after.Seconds(), b.since().Seconds())
	token, err := s.token(b.node)
	if err == nil && len(token.UsedBy) != 1 {
		err = fmt.Errorf("the token of %s was used by %v", b.node, token.UsedBy)
	}
	return err
}
