//go:build !amd64

package timeshift

// machineCode is nil where nobody has written it.
var machineCode func(offset int64) map[string][]byte
