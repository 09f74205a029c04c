// Package wan puts the tunnel's real code on a real network stack: a broker and agents, each in a process and a network
// namespace of its own, with a router that does NAT and a stretch of bad network (relay.Link) between them.
//
//	site 10.77.0.2 ---- router ==== link ==== platform 203.0.113.1
//
// The processes are this program run again: whoever uses the package calls Main first thing. A Proc is what its parent
// sees of one: it reports events, and carries out commands. The broker here is small: front, strangers and tunnel as the
// real one has them, and nothing behind them but an echo, a sink and a source. It is no place for assertions.
package wan
