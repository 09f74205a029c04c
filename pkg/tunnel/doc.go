// Package tunnel is the connection between a node's agent and the broker: one
// Session, dialled by the agent, in which either side opens Streams.
//
// A Session runs over QUIC, or over TLS 1.3 and yamux on TCP; which of them is
// told only by Session.Transport. A Stream is a net.Conn with half-close and
// reset; opening one names a kind and a target, and the other side's Handler
// accepts it or refuses it with a typed code (*RefusedError). One stream is one
// connection: a reader that stalls, stalls that stream alone.
//
// The agent's side is Dialer (one session, racing the transports) and Client
// (a session again and again, with backoff). The broker's side is Acceptor,
// which is handed the packets or connections of the public port. Identity is
// only what Session.ConnectionState says of the verified certificate; who may
// open what is the Handler's affair. Nothing here knows of tenants or nodes.
//
// What is on the wire stands in pkg/tunnel/wire and docs/tunnel-protocol.md.
package tunnel
