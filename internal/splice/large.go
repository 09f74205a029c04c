package splice

import (
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	// largeSize is that of the buffers for those who fill the others: so much at once costs each on the way fewer wakings.
	largeSize = 256 << 10
	// largeEach is how many there are for each processor at the most. They are held through a write, and one whose other side takes nothing may hold
	// on to its own for long: what is stuck must not take more memory for having been quick.
	largeEach = 16
)

var (
	largeBuffers = sync.Pool{New: func() any { return new([largeSize]byte) }}
	largeInUse   atomic.Int64
)

// takeLarge returns nil where there are enough already.
func takeLarge() *[largeSize]byte {
	if largeInUse.Add(1) > int64(largeEach*runtime.GOMAXPROCS(0)) {
		largeInUse.Add(-1)
		return nil
	}
	return largeBuffers.Get().(*[largeSize]byte)
}

// giveLarge takes one back, or nil.
func giveLarge(b *[largeSize]byte) {
	if b != nil {
		largeBuffers.Put(b)
		largeInUse.Add(-1)
	}
}
