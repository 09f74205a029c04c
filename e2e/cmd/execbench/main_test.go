package main

import (
	"slices"
	"testing"
)

// TestTurns: in each round each way has its turn, none is far from one of the direct way, and each begins two ways further on.
func TestTurns(t *testing.T) {
	for others := range 9 {
		ways := []*way{{Name: direct}}
		for range others {
			ways = append(ways, &way{})
		}
		for round := range 5 {
			all := turns(ways, round)
			since := directEvery
			for i, w := range all {
				if since++; w == ways[0] {
					since = 0
				}
				if since > directEvery {
					t.Errorf("round %d of %d ways: none of the direct way's %d before turn %d", round, len(ways), directEvery, i)
				}
			}
			if others > 0 && all[1] != ways[1+2*round%others] {
				t.Errorf("round %d of %d ways begins with another", round, len(ways))
			}
			for i, w := range ways[1:] {
				if n := len(all) - len(slices.DeleteFunc(slices.Clone(all), func(x *way) bool { return x == w })); n != 1 {
					t.Errorf("round %d of %d ways: way %d has %d turns", round, len(ways), i+1, n)
				}
			}
		}
	}
}
