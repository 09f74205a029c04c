package main

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestLoadOnTarget: the load's figures are of what the target did.
func TestLoadOnTarget(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- serveTarget(ctx, l) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	short := load{dial: plainDial(l.Addr().String()), durations: durations{transfer: 10 * time.Millisecond, pings: 10 * time.Millisecond, dials: 10 * time.Millisecond}}
	for name, run := range map[string]func(context.Context, int) (float64, int64, error){"down": short.down, "up": short.up} {
		for _, streams := range []int{1, manyStreams} {
			rate, bytes, err := run(ctx, streams)
			if err != nil || bytes < tryBytes || rate < 1e6 {
				t.Errorf("%s by %d: %.0f bytes/s, %d bytes, %v", name, streams, rate, bytes, err)
			}
		}
	}
	pings, err := short.pingPong(ctx)
	if err != nil || len(pings) == 0 || quantile(pings, 0.5) > quantile(pings, 0.99) {
		t.Errorf("round trips %v, %v", pings, err)
	}
	rate, dials, err := short.dialMany(ctx)
	if err != nil || len(dials) < dialers || rate <= 0 {
		t.Errorf("dials %.0f/s, %v, %v", rate, dials, err)
	}
	short.dial = plainDial("127.0.0.1:1")
	if _, _, err := short.down(ctx, 1); err == nil {
		t.Error("a target that is not there gave figures")
	}
}

// TestShortAnswer: bytes that do not come are no figure.
func TestShortAnswer(t *testing.T) {
	near, far := net.Pipe()
	go func() {
		io.ReadFull(far, make([]byte, 9))
		far.Write([]byte("too few"))
		far.Close()
	}()
	l := load{dial: func(context.Context) (net.Conn, error) { return near, nil }}
	if err := l.downOnce(t.Context(), 100); err == nil || !strings.Contains(err.Error(), "93 bytes short") {
		t.Errorf("got %v", err)
	}
}

func sample() *result {
	at := func(down, dials float64) round {
		var r round
		for i := range r.Values {
			r.Values[i] = 1
		}
		r.Values[down1], r.Values[dialRate] = down, dials
		r.CPUPerGB, r.CPUDial, r.RSS = []float64{1}, []float64{0.001}, []int64{20e6}
		return r
	}
	return &result{Date: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), Machine: "a machine", Rows: []*row{
		{Name: limitName, Transport: "TLS twice", Programs: []string{"p"}, Rounds: []round{at(100e6, 100), at(300e6, 300), at(200e6, 200)}},
		{Name: "Mooring & <co>", Transport: "QUIC", Programs: []string{"q"}, Rounds: []round{at(100e6, 800), at(100e6, 800), at(900e6, 800)}},
	}}
}

// TestTables: figures are medians, ratios are of medians to the limit's.
func TestTables(t *testing.T) {
	var text, page, svg strings.Builder
	r := sample()
	for _, err := range []error{r.writeText(&text), r.writeMarkdown(&page), r.writeSVG(&svg)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"Mooring & <co>, QUIC  0.50", "200 (100-300)", "100 (100-900)"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, text.String())
		}
	}
	if !strings.Contains(page.String(), "| Mooring & <co>, QUIC | 0.50 | 1.00 |") {
		t.Errorf("the page:\n%s", page.String())
	}
	if err := xml.Unmarshal([]byte(svg.String()), new(struct {
		XMLName xml.Name `xml:"svg"`
	})); err != nil || !strings.Contains(svg.String(), ">4.00<") {
		t.Errorf("%v:\n%s", err, svg.String())
	}
}

// TestPage: a page keeps what is not between its marks, and is written twice alike.
func TestPage(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "performance.md")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(page, "before\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nafter\n")
	if err := writePage(page, dir); err == nil {
		t.Error("no figures, and no error")
	}
	figures, err := json.Marshal(sample())
	if err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(dir, "speed.json"), string(figures))
	var first string
	for range 2 {
		if err := writePage(page, dir); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		got := string(text)
		if !strings.HasPrefix(got, "before\n") || !strings.HasSuffix(got, "after\n") || strings.Contains(got, "old") || !strings.Contains(got, "a machine") {
			t.Fatalf("got\n%s", got)
		}
		if first != "" && got != first {
			t.Errorf("the second time it is\n%s", got)
		}
		first = got
	}
	if _, err := os.Stat(filepath.Join(dir, "performance.svg")); err != nil {
		t.Error(err)
	}
	write(page, "no marks\n")
	if err := writePage(page, dir); err == nil {
		t.Error("a page without marks was written")
	}
}
