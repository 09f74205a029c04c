package relay

import "time"

// Settings are the faults of both ways. The zero value passes everything on at once.
type Settings struct {
	Up, Down Path // towards the target, and back
	// DropUDP loses each datagram, both ways.
	DropUDP bool
	// IdleTimeout is the silence after which a flow is forgotten, see Relay.Forget; 0: never.
	IdleTimeout time.Duration
}

// Both sets both ways alike.
func (s *Settings) Both(p Path) { s.Up, s.Down = p, p }

// Path is the faults of one way. Its flows share Rate.
type Path struct {
	// Delay is how long everything takes, Jitter what is added to that at most, at
	// random. Datagrams overtake each other by it, bytes on TCP do not.
	Delay, Jitter time.Duration
	// Loss is the share of datagrams that are lost, 0 to 1. On TCP it is the share of
	// segments (of 1448 bytes) for which everything behind waits one round trip.
	Loss float64
	// Rate is the bytes a second that pass, Burst how many may pass at once after a pause (default
	// 16 KiB); 0: no bound. Datagrams that would wait longer than Queue (default 200 ms) are lost.
	Rate, Burst int
	Queue       time.Duration
	// MaxDatagram is the size of the largest datagram that passes, without the
	// headers of UDP and IP; larger ones are lost without a word. 0: no bound.
	MaxDatagram int
	// Hole loses everything without a word, also the end of a connection.
	Hole bool
	// Stall reads nothing: what is sent piles up in the sender's and the relay's kernel.
	Stall bool
}

// Stats is what a relay has seen since it began.
type Stats struct {
	Up, Down PathStats
	// UDPFlows and TCPFlows are the source ports towards the target that were taken
	// into use, Forgotten the flows that Settings.IdleTimeout ended.
	UDPFlows, TCPFlows, Forgotten int
}

// PathStats is one way's.
type PathStats struct {
	Packets int   // datagrams, and reads of TCP, that were passed on or are on their way
	Bytes   int64 // in them
	Lost    int   // datagrams lost by Loss, Queue or Hole, and segments delayed by Loss
	TooBig  int   // datagrams lost by MaxDatagram
	// InFlight is the bytes that are on their way in the relay, Peak the most of them at once.
	InFlight, Peak int64
	// Largest is the size of the largest datagram that was passed on.
	Largest int
}
