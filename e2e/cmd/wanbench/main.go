// Command wanbench measures what one stream of the tunnel moves over a long path: real broker and agent, each in a network
// namespace, with a link of a given delay, rate and loss between their kernels. It needs root, and prints a table.
//
//	wanbench [-rtt 300ms] [-rate 100] [-loss 0,0.1,2] [-for 20s] [-window BYTES] [-over quic,tcp,cubic]
//
// TCP's congestion control is the one that sessions ask for, if it is not named; QUIC's is quic-go's own.
package main

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/e2e/internal/host"
	"github.com/mooring-edge/mooring/e2e/internal/wan"
	"github.com/mooring-edge/mooring/internal/relay"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// options are what is measured.
type options struct {
	rtt, span time.Duration
	queue     time.Duration
	mbits     float64
	window    int
	loss      []float64 // in percent
	over      []string
}

// line is one of the table.
const line = "%-10s %-5s %6s %6s  %s\n"

func main() {
	wan.Main()
	o, err := parse()
	if err == nil {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "wanbench:", err)
		os.Exit(1)
	}
}

func parse() (o options, err error) {
	flag.DurationVar(&o.rtt, "rtt", 300*time.Millisecond, "round trip time")
	flag.DurationVar(&o.span, "for", 20*time.Second, "how long each measurement takes")
	flag.DurationVar(&o.queue, "queue", 200*time.Millisecond, "how long packets wait for the bottleneck at most")
	flag.Float64Var(&o.mbits, "rate", 100, "Mbit/s of the path, each way")
	flag.IntVar(&o.window, "window", 0, "bytes of tunnel.Config.StreamWindow at both ends; 0: its default")
	loss := flag.String("loss", "0,0.1,2", "percent of packets lost each way, one measurement for each")
	over := flag.String("over", "quic,tcp", "quic, tcp, or TCP with one of net.ipv4.tcp_available_congestion_control")
	flag.Parse()
	for l := range strings.SplitSeq(*loss, ",") {
		f, err := strconv.ParseFloat(l, 64)
		if err != nil {
			return o, fmt.Errorf("-loss: %w", err)
		}
		o.loss = append(o.loss, f)
	}
	o.over = strings.Split(*over, ",")
	return o, nil
}

func run(o options) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("needs root: network namespaces and TUN devices")
	}
	if _, err := host.Sweep(); err != nil {
		return err
	}
	r, err := host.NewRun()
	if err != nil {
		return err
	}
	defer func() {
		if cerr := r.Close(false); err == nil {
			err = cerr
		}
	}()
	fmt.Printf("one stream, %s round trip, %g Mbit/s, %s each; Mbit/s at the receiver, from its first byte to its last\n\n", o.rtt, o.mbits, o.span)
	fmt.Printf(line, "transport", "loss", "down", "up", "lost of packets, down and up")
	for _, loss := range o.loss {
		for _, over := range o.over {
			if err := o.measure(r, loss, over); err != nil {
				return err
			}
		}
	}
	return nil
}

// measure makes one line of the table, on a network of its own.
func (o options) measure(r *host.Run, loss float64, over string) (err error) {
	var s relay.Settings
	s.Both(relay.Path{Delay: o.rtt / 2, Rate: int(o.mbits * 1e6 / 8), Queue: o.queue, Loss: loss / 100})
	w, err := wan.New(r, "bench", s)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := w.Close(); err == nil {
			err = cerr
		}
	}()
	transport, name := tunnel.TransportTCP, "tcp"
	switch over {
	case "quic":
		transport, name = tunnel.TransportQUIC, over
	case "tcp":
	default:
		name += " " + over
		if err := w.Congestion(over); err != nil {
			return err
		}
	}
	timing := wan.Timing{StreamWindow: o.window}
	if _, err := w.Broker(wan.BrokerConfig{Timing: timing}); err != nil {
		return err
	}
	var figures, lost []string
	for _, way := range []string{"downrate", "uprate"} {
		// Each on a connection of its own: what one has learned of the path is no help, or hindrance, to the next.
		agent, err := w.Agent(w.Site, wan.AgentConfig{Transport: transport, Timing: timing})
		if err != nil {
			return err
		}
		before := w.Link.Stats()
		e, err := agent.Do(o.span+2*time.Minute, fmt.Sprintf("%s %s", way, o.span))
		if err != nil {
			return err
		}
		if err := agent.Close(); err != nil {
			return err
		}
		figure := fmt.Sprintf("%.1f", e.Mbits())
		if e.Err != "" {
			figure = e.Err
		}
		after := w.Link.Stats()
		p, q := before.Down, after.Down
		if way == "uprate" {
			p, q = before.Up, after.Up
		}
		figures, lost = append(figures, figure), append(lost, fmt.Sprintf("%d/%d", q.Lost-p.Lost, q.Packets-p.Packets))
	}
	fmt.Printf(line, name, fmt.Sprintf("%g%%", loss), figures[0], figures[1], strings.Join(lost, ", "))
	return nil
}
