//go:build !unix

package bulk

// ReadSocket is not to be had here: connections keep their own reads.
var ReadSocket func(fd uintptr, p []byte) (int, error)

// WriteSocket is not to be had here either.
var WriteSocket func(fd uintptr, p []byte) (int, error)
