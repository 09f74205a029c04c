//go:build !linux

package bulk

// canWrite is Linux's: elsewhere a socket that takes bytes may take fewer than a message has.
func canWrite(uintptr) bool { return false }
