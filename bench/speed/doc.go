// Command speed runs one load through Mooring in each of its modes, through its peers, and through chains that do no more
// than has to be done, all in one go on one machine, and prints each as a ratio to the practical limit.
//
//	load -> near end -> far end -> target
//
// The load is this process. All other parts are processes of their own: the target (target.go), and of each chain the near
// end, where an API server would dial, and the far one, which would be on the edge node. What the load does stands in load.go; the chains
// that are no product in bare.go; Mooring's in mooring.go; the peers' in peers.go; ratios, medians and how they are shown in report.go.
//
// What it is not: a network. All goes over the loopback, so it says what the programs cost, not what a path allows.
package main
