// Package kamaji watches the TenantControlPlanes of a management cluster and connects those that are labelled
// mooring.dev/broker=enabled: it makes the broker's tenant, gives the API server a client identity and the sidecar that
// dials through the broker, and takes all of it back when the label or the object goes.
//
// What goes into an object's spec, and how it comes out again, is decided in patch.go, which is pure: it merges into
// lists that are the user's as well, notes in an annotation what it put there, and changes nothing that is right. It is a
// plain update under the object's resourceVersion; server-side apply would own these lists whole, as Kamaji's schema has
// them atomic. There is no finalizer: the deletion of a control plane never waits for a broker. What was missed while no
// broker ran is looked up when one leads again.
//
// The package knows Kamaji by the few fields that it reads and writes, not by its Go types, so that fields which it does
// not know come through untouched. It neither provisions tenants nor issues certificates itself: Broker does.
package kamaji
