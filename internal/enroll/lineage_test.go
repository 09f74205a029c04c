package enroll

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var t0 = time.Unix(1_700_000_000, 0).UTC()

func hello(instance string, generation uint64, ancestors ...string) Lineage {
	return Lineage{Instance: instance, Ancestors: ancestors, Generation: generation, SPKI: "key", Remote: "192.0.2.1:1", Now: t0}
}

func volatile(h Lineage) Lineage { h.Volatile = true; return h }

func TestJudge(t *testing.T) {
	dead, alive := func() bool { return false }, func() bool { return true }
	never := func() bool { t.Error("the older session was probed"); return true }
	otherKey := hello("z1", 1)
	otherKey.SPKI = "another key"
	for name, tc := range map[string]struct {
		before []Lineage // accepted, one after the other
		then   Lineage
		alive  func() bool
		want   Verdict
		clone  bool
	}{
		"first":                                      {nil, hello("a1", 1), never, Accepted, false},
		"first, with a past":                         {nil, hello("a3", 3, "a2", "a1"), never, Accepted, false},
		"next":                                       {[]Lineage{hello("a1", 1)}, hello("a2", 2, "a1"), never, Accepted, false},
		"some were never let in":                     {[]Lineage{hello("a1", 1)}, hello("a4", 4, "a3", "a2", "a1"), never, Accepted, false},
		"same instance, later":                       {[]Lineage{hello("a1", 1)}, hello("a1", 2), never, Accepted, false},
		"same instance, earlier":                     {[]Lineage{hello("a1", 2)}, hello("a1", 1), never, Superseded, false},
		"same instance, same time":                   {[]Lineage{hello("a1", 2)}, hello("a1", 2), never, Superseded, false},
		"stale attempt":                              {[]Lineage{hello("a1", 1), hello("a3", 3, "a2", "a1")}, hello("a2", 2, "a1"), never, Superseded, false},
		"an ancestor that counts on":                 {[]Lineage{hello("a1", 1), hello("b3", 3, "a2", "a1")}, hello("a2", 4, "a1"), never, Quarantined, true},
		"stale attempt of two sessions ago":          {[]Lineage{hello("a1", 1), hello("a2", 2, "a1"), hello("a3", 3, "a2")}, hello("a1", 1), never, Superseded, false},
		"forked, older live":                         {[]Lineage{hello("a1", 1), hello("a2", 2, "a1")}, hello("b2", 2, "a1"), never, Quarantined, true},
		"forked, older dead":                         {[]Lineage{hello("a1", 1), hello("a2", 2, "a1")}, hello("b2", 2, "a1"), dead, Quarantined, true},
		"forked from one that was never let in":      {[]Lineage{hello("a3", 3, "a2", "a1")}, hello("b1", 4, "a2", "a1"), never, Quarantined, true},
		"no past, older dead":                        {[]Lineage{hello("a1", 1)}, hello("b1", 1), dead, Accepted, false},
		"no past, older live":                        {[]Lineage{hello("a1", 1)}, hello("b1", 1), alive, Quarantined, true},
		"volatile, older dead":                       {[]Lineage{hello("a1", 1), hello("a2", 2, "a1")}, volatile(hello("b2", 2, "a1")), dead, Accepted, false},
		"volatile, older live":                       {[]Lineage{hello("a1", 1), hello("a2", 2, "a1")}, volatile(hello("b2", 2, "a1")), alive, Quarantined, true},
		"volatile, but goes on":                      {[]Lineage{hello("a1", 1)}, volatile(hello("a2", 2, "a1")), never, Accepted, false},
		"more starts than it remembers, older dead":  {[]Lineage{hello("a1", 1)}, hello("x9", 9, "x8", "x7", "x6"), dead, Accepted, false},
		"more starts than it remembers, older live":  {[]Lineage{hello("a1", 1)}, hello("x9", 9, "x8", "x7", "x6"), alive, Quarantined, true},
		"back after another took over from the dead": {[]Lineage{hello("a1", 1), hello("b1", 1)}, hello("a2", 2, "a1"), never, Quarantined, true},
		"the dead one comes again":                   {[]Lineage{hello("a1", 1), hello("b1", 1)}, hello("a1", 2), never, Quarantined, true},
		"late attempt of the dead one":               {[]Lineage{hello("a1", 1), hello("b1", 1)}, hello("a1", 1), never, Superseded, false},
		"keeps no lineage, never did":                {[]Lineage{hello("", 1)}, hello("", 1), never, Accepted, false},
		"keeps no lineage, the node did, dead":       {[]Lineage{hello("a1", 1)}, hello("", 1), dead, Accepted, false},
		"keeps no lineage, the node did, live":       {[]Lineage{hello("a1", 1)}, hello("", 1), alive, Quarantined, true},
		"begins to keep one":                         {[]Lineage{hello("", 1)}, hello("a1", 1), never, Accepted, false},
		"of another key":                             {[]Lineage{hello("a1", 1)}, otherKey, never, Accepted, false},
	} {
		t.Run(name, func(t *testing.T) {
			var rec lineageRecord
			for _, h := range tc.before {
				if j := judge(&rec, h, dead); j.verdict != Accepted {
					t.Fatalf("%s: %+v", h.Instance, j)
				}
			}
			j := judge(&rec, tc.then, tc.alive)
			if j.verdict != tc.want || j.clone != tc.clone {
				t.Fatalf("judged %+v; want verdict %d, clone %v", j, tc.want, tc.clone)
			}
			if got := rec.current(tc.then).verdict; j.verdict != Superseded && got != tc.want {
				t.Errorf("and a moment later verdict %d", got)
			}
			if tc.clone && len(rec.Lines) != 2 {
				t.Errorf("lines %+v", rec.Lines)
			}
		})
	}
}

// cloned is a record of two boxes in quarantine, A (a...) and B (b...).
func cloned(t *testing.T) *lineageRecord {
	t.Helper()
	rec := &lineageRecord{}
	for _, h := range []Lineage{hello("a1", 1), hello("a2", 2, "a1")} {
		judge(rec, h, nil)
	}
	b := hello("b2", 2, "a1")
	b.Remote = "198.51.100.7:7"
	if j := judge(rec, b, nil); !j.clone {
		t.Fatalf("%+v", j)
	}
	return rec
}

func ids(lines []Line) string {
	var all []string
	for _, l := range lines {
		all = append(all, l.ID+"="+l.Instance)
	}
	return strings.Join(all, " ")
}

func TestQuarantineTellsBoxesApart(t *testing.T) {
	rec := cloned(t)
	for _, step := range []struct {
		h    Lineage
		want string
	}{
		{hello("a3", 3, "a2", "a1"), "a2=a3 b2=b2"},
		{hello("b2", 3, "a1"), "a2=a3 b2=b2"},
		{hello("b3", 4, "b2", "a1"), "a2=a3 b2=b3"},
		{hello("a2", 2, "a1"), "a2=a3 b2=b3"}, // late
		{hello("a1", 1), "a2=a3 b2=b3"},       // later still
		{hello("c2", 2, "a1"), "a2=a3 b2=b3 c2=c2"},
	} {
		if j := judge(rec, step.h, nil); j.verdict != Quarantined || j.clone || ids(rec.Lines) != step.want {
			t.Errorf("after %s: %+v, lines %s; want %s", step.h.Instance, j, ids(rec.Lines), step.want)
		}
	}
	for i := range 20 {
		judge(rec, hello(fmt.Sprint("d", i), 1, "a1"), nil)
	}
	if len(rec.Lines) != maxLines {
		t.Errorf("%d lines, want no more than %d", len(rec.Lines), maxLines)
	}
}

func TestResolveKeepsOneAndBarsTheOther(t *testing.T) {
	for keep, other := range map[string]string{"a": "b", "b": "a"} {
		rec := cloned(t)
		judge(rec, hello("b3", 3, "b2", "a1"), nil)
		judge(rec, hello("a3", 3, "a2", "a1"), nil)
		if rec.keep("nobody") || !rec.keep(keep+"2") || len(rec.Lines) != 0 {
			t.Fatalf("keep %s: %+v", keep, rec)
		}
		for i, want := range []Verdict{Quarantined, Accepted, Quarantined, Accepted} {
			n := uint64(4 + i/2)
			box := []string{other, keep}[i%2]
			h := hello(fmt.Sprint(box, n), n, fmt.Sprint(box, n-1), box+"3", box+"2", "a1")
			if j := judge(rec, h, nil); j.verdict != want {
				t.Errorf("kept %s; %s: %+v, want verdict %d", keep, h.Instance, j, want)
			}
		}
	}
	// One that was about to use an instance which the copy names as an ancestor.
	rec := &lineageRecord{}
	for _, h := range []Lineage{hello("a1", 1), hello("b3", 3, "a2", "a1"), hello("a2", 4, "a1"), hello("a2", 5, "a1")} {
		judge(rec, h, nil)
	}
	if ids(rec.Lines) != "b3=b3 a2=a2" || !rec.keep("b3") {
		t.Fatalf("%+v", rec)
	}
	if j := judge(rec, hello("a2", 6, "a1"), nil); j.verdict != Quarantined || j.clone {
		t.Errorf("the box that was put out: %+v", j)
	}
	if j := judge(rec, hello("b4", 4, "b3", "a2", "a1"), nil); j.verdict != Accepted {
		t.Errorf("the box that was kept: %+v", j)
	}
	// The one that asked last with an instance that was refused goes on with it.
	rec = cloned(t)
	rec.keep("b2")
	if j := judge(rec, hello("b2", 3, "a1"), nil); j.verdict != Accepted {
		t.Errorf("the kept box with the instance it was refused with: %+v", j)
	}
}

// simBox does what an agent does, and may be killed between any two steps.
type simBox struct {
	name       string
	serial     int
	disk       []string // instances, newest first
	diskGen    uint64
	running    bool
	starts     int
	instance   string // of the process; "" = a new one is due
	gen        uint64
	session    string // instance of the session that the process holds; "" = none
	sessionGen uint64
	inFlight   []attempt
}

type attempt struct {
	h      Lineage
	starts int
}

func (b *simBox) kill() { b.running, b.session = false, "" }

// try goes through the steps of an attempt; it is killed after the given number of them.
func (b *simBox) try(killAt int) bool {
	step := 0
	killed := func() bool {
		step++
		if step == killAt {
			b.kill()
		}
		return step == killAt
	}
	if !b.running {
		b.running, b.instance, b.gen = true, "", b.diskGen
		b.starts++
	}
	if killed() {
		return false
	}
	b.gen++
	if b.instance == "" {
		b.serial++
		b.instance = fmt.Sprintf("%s%d", b.name, b.serial)
		b.disk = first(9, append([]string{b.instance}, b.disk...))
	}
	b.diskGen = b.gen
	if killed() {
		return false
	}
	h := hello(b.instance, b.gen, slices.Clone(b.disk[1:])...)
	b.inFlight = append(b.inFlight, attempt{h, b.starts})
	return !killed()
}

// deliver brings an attempt to the broker, the newest mostly; an older one may come late.
func (b *simBox) deliver(rec *lineageRecord, r *rand.Rand, alive func() bool) (judgement, bool) {
	b.inFlight = slices.DeleteFunc(b.inFlight, func(a attempt) bool { return b.starts-a.starts > 2 }) // those are long dead
	if len(b.inFlight) == 0 {
		return judgement{}, false
	}
	i := len(b.inFlight) - 1
	if r.IntN(4) == 0 {
		i = r.IntN(len(b.inFlight))
	}
	a := b.inFlight[i]
	b.inFlight = slices.Delete(b.inFlight, i, i+1)
	j := judge(rec, a.h, alive)
	if j.verdict != Accepted {
		return j, true
	}
	// The answer reaches the process that asked, if it is there; it takes a new instance for the next session then.
	if b.running && a.starts == b.starts && r.IntN(5) > 0 {
		b.session, b.sessionGen = a.h.Instance, a.h.Generation
		if b.instance == a.h.Instance {
			b.instance = ""
		}
	}
	return j, true
}

// A box alone is never taken for two, whatever it goes through.
func TestOneBoxIsNeverQuarantined(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		var rec lineageRecord
		box := &simBox{name: "a"}
		alive := func() bool {
			return box.running && box.session == rec.Tip.Instance && box.sessionGen == rec.Tip.Generation
		}
		for i := range 300 {
			switch n := r.IntN(10); {
			case n < 4:
				box.try(r.IntN(8)) // 1 to 3 kill it at a step
			case n == 4:
				box.kill()
			case n == 5: // a long time out of reach: started again and again
				for range r.IntN(15) {
					box.kill()
					box.try(0)
				}
			default:
				if j, ok := box.deliver(&rec, r, alive); ok && (j.verdict == Quarantined || len(rec.Lines) > 0) {
					t.Fatalf("seed %d, step %d: %+v; record %+v", seed, i, j, rec)
				}
			}
		}
		// And it gets in in the end.
		box.try(0)
		if j := judge(&rec, box.inFlight[len(box.inFlight)-1].h, alive); j.verdict != Accepted {
			t.Fatalf("seed %d: at the end: %+v", seed, j)
		}
	}
}

// Two boxes from one disk are found, whichever comes first and however they fare.
func TestTwoBoxesFromOneDiskAreAlwaysQuarantined(t *testing.T) {
	for seed := range uint64(500) {
		r := rand.New(rand.NewPCG(seed, 2))
		var rec lineageRecord
		a := &simBox{name: "a"}
		boxes := []*simBox{a}
		alive := func() bool {
			return slices.ContainsFunc(boxes, func(b *simBox) bool {
				return b.running && b.session != "" && b.session == rec.Tip.Instance && b.sessionGen == rec.Tip.Generation
			})
		}
		turn := func(b *simBox) {
			if r.IntN(3) == 0 {
				b.kill()
			}
			b.try(r.IntN(8))
			b.deliver(&rec, r, alive)
		}
		for range r.IntN(40) {
			turn(a)
		}
		if len(rec.Lines) > 0 {
			t.Fatalf("seed %d: quarantined while alone", seed)
		}
		// The image may be older than the box is by now.
		image := &simBox{name: "b", disk: slices.Clone(a.disk), diskGen: a.diskGen}
		boxes = append(boxes, image)
		for range r.IntN(20) {
			turn(a)
		}
		for range r.IntN(20) {
			turn(boxes[r.IntN(2)])
		}
		// Each is let be for a while, in any order.
		r.Shuffle(2, func(i, j int) { boxes[i], boxes[j] = boxes[j], boxes[i] })
		for range 40 {
			for _, b := range boxes {
				b.inFlight = nil
				if b.session != "" && b.session == rec.Tip.Instance {
					continue // connected, and stays so
				}
				b.session = ""
				b.try(0)
				at := b.inFlight[len(b.inFlight)-1].h
				if j := judge(&rec, at, alive); j.verdict == Accepted {
					b.session, b.sessionGen, b.instance = at.Instance, at.Generation, ""
				}
			}
		}
		if len(rec.Lines) < 2 {
			t.Fatalf("seed %d: not found: %+v", seed, rec)
		}
	}
}
