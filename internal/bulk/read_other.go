//go:build !unix

package bulk

// ReadSocket is not to be had here: connections keep their own reads.
var ReadSocket func(fd uintptr, p []byte) (int, error)
