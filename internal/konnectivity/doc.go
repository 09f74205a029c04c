// Package konnectivity takes the agents of upstream's konnectivity (apiserver-network-proxy) as they are, so that a cluster
// can move over node by node: each is a way to the node that it is known to run on.
//
// A connection says by its server name (SNI) which tenant it is for. Its node is what a verified client certificate or a
// verified ServiceAccount token says, and never what the agent says of itself: agentID and agentIdentifiers are logged.
//
// The protocol multiplexes connections over one gRPC stream and knows no flow control for each of them. So what an agent
// sends for a connection that nobody reads is kept up to a bound; then the agent as a whole waits, with a bound again; then
// that connection is closed. It knows no half-close either: the end of one direction is the end of both.
//
// It is not the side that API servers speak konnectivity with, and dials nothing itself. Serve ends with its context.
package konnectivity
