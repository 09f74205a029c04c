// Package faults holds the tests of those faults and attacks that need a real network stack: conntrack, packets that are too
// large, kernels that keep TCP alive for a process that does not run. What of them can be shown without root is beside
// the code; names begin with the fault's number, as `make faults` lists them.
//
// Each test has a network of its own (internal/wan), and most of them wait most of the time, so they run beside each other.
package faults
