package durable

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// childEnv makes the test binary write one file over and over until killed.
const childEnv = "DURABLE_TEST_WRITE"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		writeForEver(path)
	}
	os.Exit(m.Run())
}

// generation is content that shows whether it is whole: its number on every
// line, and a last line that ends it. The size varies with the number.
func generation(n int) []byte {
	line := strconv.Itoa(n) + "\n"
	return []byte(strings.Repeat(line, 1000+n%50*1000) + "end\n")
}

func writeForEver(path string) {
	first, err := strconv.Atoi(os.Getenv(childEnv + "_FROM"))
	if err != nil {
		panic(err)
	}
	for n := first; ; n++ {
		if err := WriteFile(path, generation(n), 0o600); err != nil {
			panic(err)
		}
		fmt.Println(n) // acknowledged: from here on, n or later must be read
	}
}

func TestKilledWriterLeavesOldOrNew(t *testing.T) {
	const kills, limit = 36, 1 << 20
	path := filepath.Join(t.TempDir(), "state")
	if err := WriteFile(path, generation(0), 0o600); err != nil {
		t.Fatal(err)
	}
	last, leftovers := 0, 0
	deadline := time.Now().Add(30 * time.Second)
	for i := 0; i < kills; i++ {
		if time.Now().After(deadline) {
			t.Logf("stopped after %d kills: the machine is slow", i)
			break
		}
		acked := killOne(t, path, last+1)
		if strings.Contains(names(t, filepath.Dir(path)), tmpMark) {
			leftovers++
		}
		data, err := ReadFile(path, limit)
		if err != nil {
			t.Fatalf("after kill %d: %v", i, err)
		}
		line, _, _ := bytes.Cut(data, []byte("\n"))
		n, err := strconv.Atoi(string(line))
		if err != nil || !bytes.Equal(data, generation(n)) {
			t.Fatalf("after kill %d: %d bytes that are no whole generation, begin %q", i, len(data), line)
		}
		if n < acked {
			t.Fatalf("after kill %d: generation %d, but %d was acknowledged", i, n, acked)
		}
		last = n
	}
	t.Logf("%d generations written, %d kills left a temporary file", last, leftovers)
	if err := WriteFile(path, generation(last+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := names(t, filepath.Dir(path)); got != "state" {
		t.Errorf("the next write left %q, want the leftovers gone", got)
	}
}

// killOne runs a writer, kills it some milliseconds after its first write, and
// returns the last generation that it acknowledged.
func killOne(t *testing.T, path string, from int) (acked int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path, fmt.Sprintf("%s_FROM=%d", childEnv, from))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if acked, err = strconv.Atoi(lines.Text()); err != nil {
			t.Errorf("the writer says %q", lines.Text())
		}
		if !killed {
			killed = true
			// The moment within a write is what varies, so it is random on purpose.
			time.AfterFunc(time.Duration(rand.IntN(8000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		}
	}
	_ = cmd.Wait() // "signal: killed"
	if !killed {
		t.Fatal("the writer ended before its first write")
	}
	return acked
}
