package main

import (
	"fmt"
	"strings"
	"time"
)

// printer lays the demo's output out: numbered steps, commands after a $, what they print below.
type printer struct {
	start time.Time
	steps int
}

const indent = "     "

func (p *printer) title(text string) {
	fmt.Println(text)
}

// step begins the next numbered step.
func (p *printer) step(text string) {
	p.steps++
	fmt.Printf("\n%3d  %s\n", p.steps, text)
}

// info says one thing about the current step.
func (p *printer) info(format string, args ...any) {
	p.block(fmt.Sprintf(format, args...))
}

// command shows a command as a person would type it.
func (p *printer) command(format string, args ...any) {
	p.block("$ " + fmt.Sprintf(format, args...))
}

// since says how long something took.
func (p *printer) since(start time.Time, format string, args ...any) {
	p.info("%-58s %6.1f s", fmt.Sprintf(format, args...), time.Since(start).Seconds())
}

func (p *printer) block(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Println(indent + strings.TrimRight(line, "\n"))
	}
}
