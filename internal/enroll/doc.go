// Package enroll lets boxes become nodes: it keeps the enrolment tokens and the node records, answers the
// enrolment protocol, mints bootstrap tokens at the tenants' API servers, and approves the certificate
// requests of the kubelets that come of it.
//
// The parts, each usable without the others:
//
//	Tokens    operator's side of tokens, and Claim, which trades one for a node in a single store commit;
//	          the boxes that wait for an operator, and their approval
//	Claims    which box, by its serial number, belongs where, said ahead
//	Nodes     the node records; Authorize says whether an identity is (still) a node
//	Server    http.Handler for the protocol of internal/enrollapi
//	Minter    a bootstrap token for one node, as a Secret at its tenant
//	Approver  one tenant's kubelet CSRs, approved when they are exactly what the records say
//	Manager   one Approver for each tenant, as tenants come and go
//
// A node is a record (tenant, name) with the hash of the key that holds the name; certificates are made from
// it and are worth nothing without it. The package decides nothing about sessions and dials: it is told which
// addresses a live session attests (Attester).
package enroll
