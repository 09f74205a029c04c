package vm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Line is one line of the console.
type Line struct {
	At   time.Time // when its end was read
	Text string    // without escape sequences
}

const (
	// maxLine cuts a line that does not end, in bytes.
	maxLine = 4096
	// maxLines is how many lines are kept: some dozens of boots.
	maxLines = 100_000
)

// Console is what the machine has said on its first serial port, since its first PowerOn. It may be used by any number of
// goroutines.
type Console struct {
	mu    sync.Mutex // guards the following
	lines []Line
	more  chan struct{} // closed when a line comes
}

func newConsole() *Console { return &Console{more: make(chan struct{})} }

// escape matches what terminals are told beside text: colours, the cursor's place.
var escape = regexp.MustCompile("\x1b(\\[[0-9;=?!]*[A-Za-z]|\\][^\a]*\a|[()][A-Z0-9]|[=>78])")

// animation matches the line that systemd draws anew twice a second while it waits for a job.
var animation = regexp.MustCompile(`^\[[ *]{6}\] `)

// read takes lines until there are no more.
func (c *Console) read(from io.Reader) {
	r := bufio.NewReaderSize(from, maxLine)
	for {
		chunk, err := r.ReadSlice('\n') // a line that does not fit comes in pieces
		if len(chunk) > 0 {
			c.add(string(chunk))
		}
		if err != nil && err != bufio.ErrBufferFull {
			return
		}
	}
}

func (c *Console) add(text string) {
	text = strings.Trim(escape.ReplaceAllString(text, ""), "\r\n")
	c.mu.Lock()
	defer c.mu.Unlock()
	if text == "" || animation.MatchString(text) || len(c.lines) >= maxLines {
		return
	}
	c.lines = append(c.lines, Line{time.Now(), text})
	close(c.more)
	c.more = make(chan struct{})
}

// Mark is the place after what was said so far, for From and Wait.
func (c *Console) Mark() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.lines)
}

// From returns the lines said since mark.
func (c *Console) From(mark int) []Line {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Line(nil), c.lines[mark:]...)
}

// Wait returns the first line since mark that matches, and the place after it. It returns ctx's cause if none comes in
// time.
func (c *Console) Wait(ctx context.Context, mark int, want *regexp.Regexp) (Line, int, error) {
	for next := mark; ; {
		c.mu.Lock()
		fresh, more := c.lines[next:], c.more
		c.mu.Unlock()
		for i, line := range fresh {
			if want.MatchString(line.Text) {
				return line, next + i + 1, nil
			}
		}
		next += len(fresh)
		select {
		case <-more:
		case <-ctx.Done():
			last := "nothing"
			if next > mark {
				last = fmt.Sprintf("%q", c.From(next - 1)[0].Text)
			}
			return Line{}, next, fmt.Errorf("no line like %q on the console, last was %s: %w", want, last, context.Cause(ctx))
		}
	}
}
