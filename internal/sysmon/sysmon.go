// Package sysmon has the Go runtime's own clock, the thread that it calls sysmon, look less often (docs/decisions/0031).
package sysmon

import "time"

// Slack is how much later than it asks for sysmon may be woken once Calm was called: as long as its own longest pause. Where a processor is busy, the
// system's tick wakes it before (4 ms at 250 Hz).
const Slack = 10 * time.Millisecond
