// Command fleet measures what a fleet of nodes costs a broker: it starts the real broker, enrols thousands of nodes
// with it, keeps a session for each by the tunnel's own client, and reports memory and CPU of an idle session, how long
// all take to come back after the broker was killed, how long a dial of an API server takes meanwhile, and how many
// bytes an idle node sends and receives.
//
// What it is not: the nodes have no kubelet, no disk and no API server of their own. All of them live in this process;
// what the broker dials at one of them is echoed. The control plane is internal/kubetest, in this process too.
//
// The broker is internal/shore's, the nodes are node.go's and fleet.go's, an API server's dials are trickle.go's; what is
// measured, and how, stands in measure.go, wan.go and churn.go.
package main
