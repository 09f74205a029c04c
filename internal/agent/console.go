package agent

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const consoleInterval = time.Minute

// console shows the person in front of the box what it waits for. It does its best: a machine may have no
// console, or one that nobody may write to.
type console struct {
	path string // empty: none

	mu   sync.Mutex // guards last
	last time.Time
}

// say writes one message, unless there was one less than a minute ago.
func (c *console) say(message string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.path == "" || !c.last.IsZero() && time.Since(c.last) < consoleInterval {
		return
	}
	c.last = time.Now()
	// Never blocking (a serial line with flow control could), never as the controlling terminal, and never
	// making a file in the place of a device that is not there.
	fd, err := unix.Open(c.path, unix.O_WRONLY|unix.O_APPEND|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Write(fd, fmt.Appendf(nil, "\r\nedge-agent: %s\r\n", message))
}
