// Package tenant knows the hosted control planes: what each is called, where its API server is dialled,
// by which name and CA it is verified, and the kubeconfig that the broker acts with there.
//
// FromKubeconfig makes a Tenant of an admin kubeconfig and refuses everything that would make the broker
// run programs, read files or skip verification. The Registry keeps the tenants of the store in memory and
// tells its subscribers of changes, one tenant at a time: nothing here touches a tenant that did not change.
//
// The package neither watches nor configures control planes, and knows nothing of nodes or sessions.
package tenant
