// Package rounds has what a program looks at every now and then looked at together: to wake an idle processor takes longer than most of that does.
package rounds

import "time"

// Until is how long it is until the wall clock shows a whole multiple of every: what goes by the same wakes at once, and so does what goes by twice
// as much. A round of which less than a tenth is left is left out, since a timer may come a little before the wall clock does; so the result is from a
// tenth of every to 1.1 times that. A wall clock that is set moves one round. every must be positive.
func Until(every time.Duration) time.Duration { return until(time.Now(), every) }

func until(now time.Time, every time.Duration) time.Duration {
	left := now.Truncate(every).Add(every).Sub(now.Round(0)) // by the wall clock
	if left < every/10 {
		left += every
	}
	return left
}
