package listen

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrAnswered says that somebody listens at a socket already.
var ErrAnswered = errors.New("another process answers there")

// Unix opens a socket for its owner alone (mode 0600), and makes its directory. One that nobody answers at was left by somebody who
// was killed, and is replaced; one that somebody does, or what is no socket, is not. The umask is the process' own: call it where
// nothing else makes files at that moment.
func Unix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", path, ErrAnswered)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket == 0 {
		return nil, fmt.Errorf("%s: there is something else at that path", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// Made with its final mode: a chmod afterwards would leave a moment in which others can connect.
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	return net.Listen("unix", path)
}
