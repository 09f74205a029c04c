//go:build !unix

package bulk

// readSocket is not to be had here: connections keep their own reads.
var readSocket func(fd uintptr, p []byte) (int, error)
