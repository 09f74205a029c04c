// Package packages shows the life cycle of the deb and rpm packages on machines with a real systemd (containers of
// systemd-nspawn), against a real broker and a real API server: installed, configured, restarted by the watchdog, upgraded
// with a live tunnel, removed, purged, installed again; and a plain Debian that cloud-init makes a node.
//
// There are no cgroup controllers in these containers, so the kubelet is a stand-in: a process that has to be left
// alone. The rpm goes onto a Debian root that rpm knows nothing about (--nodeps): its scripts run with a real systemd, but what
// dnf makes of its dependencies, Fedora's presets and SELinux are not shown.
package packages
