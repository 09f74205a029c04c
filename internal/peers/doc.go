// Package peers lets brokers of one store reach each other's nodes.
//
// A Directory keeps in the store, under one lease for each broker, which nodes are connected to it, and follows what
// the others keep there. Links has one tunnel session to each broker that is asked, over mTLS with brokers'
// identities, and answers what others ask of this one. A connection that is handed on is one stream, as on the way to a node.
//
// The package finds and carries. Which node is meant by an address, and whether its tenant asks, is decided by those who
// use it: on both ends nothing but brokers' certificates is trusted.
package peers
