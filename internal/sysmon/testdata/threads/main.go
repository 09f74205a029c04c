// Command threads calls Calm and prints the timer slack of each of its threads, in nanoseconds, that of the first one first.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"

	"github.com/mooring-edge/mooring/internal/sysmon"
)

func main() {
	procs := runtime.GOMAXPROCS(0)
	exitOn(sysmon.Calm())
	if now := runtime.GOMAXPROCS(0); now != procs {
		exitOn(fmt.Errorf("GOMAXPROCS was %d and is %d", procs, now))
	}
	// Threads that are made later, too.
	var there, gone sync.WaitGroup
	release := make(chan struct{})
	for range 20 {
		there.Add(1)
		gone.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			there.Done()
			<-release
		})
	}
	there.Wait()
	close(release)
	gone.Wait() // sysmon starts none while so many are idle
	show(strconv.Itoa(os.Getpid()))
	tasks, err := os.ReadDir("/proc/self/task")
	exitOn(err)
	for _, t := range tasks {
		if t.Name() != strconv.Itoa(os.Getpid()) {
			show(t.Name())
		}
	}
}

func show(thread string) {
	b, err := os.ReadFile("/proc/" + thread + "/timerslack_ns")
	exitOn(err)
	fmt.Print(string(b))
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
