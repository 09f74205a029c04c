// Package edgeos boots the immutable image (images/edge-os) in QEMU and shows what it promises: from power-on to a node that
// is Ready with nobody touching it, updates that fall back by themselves, boxes of one image that are not one box, and
// power cuts.
//
// Its tests have the platform of package harness, and machines of package vm behind a NAT router each. There is no login
// on a box: what is done inside is done through the tunnel, by `kubectl exec` in a privileged pod, as its owner would.
package edgeos
