// Package files keeps the tenants that a directory's files describe: one for each NAME.yaml (config.Tenant). It adds what is not
// there, changes what the files say otherwise, and removes a tenant whose file is gone.
//
// A removal cuts nodes off, so that nothing is lost by mistake: an addition is done at once, but a change or a removal only when two
// looks in a row saw the same. A directory that can't be read or that holds no tenant's file loses nothing, nor does a file that can't be
// read or understood. All of that is said in the condition TenantFiles.
//
// Several brokers of one store may have the same files, at times of different age (a ConfigMap's mount). A broker removes only what it
// has seen a file of, or what was there when it first looked: not what another broker has a newer file of.
package files
