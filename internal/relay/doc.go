// Package relay is a stretch of bad network for tests: it stands between a client and a server, for UDP and TCP, and
// delays, loses, slows, stalls, cuts and forgets what passes, by settings that can change at any time. It is no part of
// the product, and needs no rights: everything goes through sockets on the loopback interface, or, for tests under
// testing/synctest, through a packet network in memory (Mem; UDP only).
//
// What a relay in user space can not do: it ends TCP and begins it anew, so the kernels at both ends always have their
// bytes acknowledged, and no segment is ever lost. A loss on TCP is a pause of one round trip in its place, as a fast
// retransmission would make it; what the sender's congestion control would do about it is not shown. A Link shows that: it
// carries IP packets between two network namespaces, for which it needs root and Linux.
package relay
