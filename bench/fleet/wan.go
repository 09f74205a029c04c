package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mooring-edge/mooring/bench/internal/shore"
	"github.com/mooring-edge/mooring/pkg/tunnel"
)

// The link between the nodes and the broker: a veth pair, of which the nodes' end is in a namespace of its own.
const (
	wanBroker = "10.231.77.1"
	wanNodes  = "10.231.77.2"
	wanBits   = "/30"
	// ethernetHeader is what an interface counts of each packet that is none of IP's.
	ethernetHeader = 14
)

// wanReport is what one transport's idle sessions have put on the link. Bytes are whole IP packets, both ways.
type wanReport struct {
	Transport     string  `json:"transport"`
	Agents        int     `json:"agents"`
	Window        float64 `json:"windowSeconds"`
	Up            traffic `json:"up"`   // from the nodes
	Down          traffic `json:"down"` // to the nodes
	PerAgentDay   float64 `json:"bytesPerAgentAndDay"`
	PerConnection float64 `json:"bytesPerConnection"` // of a session's beginning
}

// traffic is what has passed one way.
type traffic struct {
	Packets int64 `json:"packets"`
	Bytes   int64 `json:"bytes"`
}

// measureWAN has nodes idle behind a link that is counted on.
func measureWAN(ctx context.Context, o options, transports []tunnel.Transport, say func(string, ...any)) (all []*wanReport, err error) {
	link, err := newLink()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, link.remove()) }()
	s, ids, done, err := prepare(ctx, o, wanBroker, say)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	file := filepath.Join(s.Dir, "nodes.json")
	data, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return nil, err
	}
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	for _, t := range transports {
		r, err := link.measure(ctx, o, s, file, t, say)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// measure runs the nodes, which are those in the file, in a process at the far end of the link.
func (l *link) measure(ctx context.Context, o options, s *shore.Shore, file string, t tunnel.Transport, say func(string, ...any)) (*wanReport, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	before, err := l.counters()
	if err != nil {
		return nil, err
	}
	say("connecting %d nodes over %s, behind the link", o.agents, t)
	cmd := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+l.netns, "--", self, "nodes",
		"--identities", file, "--endpoint", s.Config.Front.PublicEndpoint, "--transport", string(t), "--connecting", fmt.Sprint(o.connecting))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		in.Close() // which ends it
		cmd.Wait()
	}()
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != nodesUp {
		return nil, fmt.Errorf("the nodes behind the link did not connect: %w", err)
	}
	up, err := l.counters()
	if err != nil {
		return nil, err
	}
	// What a session begins with, its first heartbeat and its bundle, is over by then.
	if err := sleep(ctx, settleTime); err != nil {
		return nil, err
	}
	from, err := l.counters()
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	say("all idle for %s", o.wanFor)
	if err := sleep(ctx, o.wanFor); err != nil {
		return nil, err
	}
	to, err := l.counters()
	if err != nil {
		return nil, err
	}
	window := time.Since(begin)
	r := &wanReport{Transport: string(t), Agents: o.agents, Window: window.Seconds(), Up: to[0].minus(from[0]), Down: to[1].minus(from[1])}
	r.PerAgentDay = float64(r.Up.Bytes+r.Down.Bytes) / float64(o.agents) * float64(24*time.Hour) / float64(window)
	begun := up[0].minus(before[0]).Bytes + up[1].minus(before[1]).Bytes
	r.PerConnection = float64(begun) / float64(o.agents)
	return r, nil
}

const nodesUp = "all up\n"

// runNodes is the process at the far end of the link: it keeps sessions until its input ends.
func runNodes(ctx context.Context, file, endpoint string, o options, stdin io.Reader, stdout io.Writer) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var ids []*identity
	if err := json.Unmarshal(data, &ids); err != nil {
		return err
	}
	if err := completeAll(ids); err != nil {
		return err
	}
	transports, err := o.transports()
	if err != nil {
		return err
	}
	f := newFleet(endpoint, ids, transports...)
	defer f.stop()
	if err := f.start(ctx, o.connecting); err != nil {
		return err
	}
	upCtx, cancel := context.WithTimeoutCause(ctx, backTimeout, fmt.Errorf("after %s", backTimeout))
	defer cancel()
	if err := f.await(upCtx, allUp); err != nil {
		return err
	}
	fmt.Fprint(stdout, nodesUp)
	_, err = io.Copy(io.Discard, stdin)
	return err
}

// link is a veth pair.
type link struct {
	netns, near string
}

func newLink() (*link, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("--wan counts the bytes on a link between network namespaces, which only root can make: run it as root")
	}
	for _, program := range []string{"ip", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("--wan needs %s: install Debian's iproute2 and util-linux", program)
		}
	}
	// No second hyphen: a namespace moor-ID-NAME is an end-to-end run's, and is removed if there is no run ID.
	l := &link{netns: fmt.Sprintf("moor-fleet%d", os.Getpid()), near: fmt.Sprintf("moor%d", os.Getpid()%1_000_000)}
	far := l.near + "n"
	for _, args := range []string{
		"netns add " + l.netns,
		"link add " + l.near + " type veth peer name " + far,
		"link set " + far + " netns " + l.netns,
		"addr add " + wanBroker + wanBits + " dev " + l.near,
		"link set " + l.near + " up",
		"-n " + l.netns + " addr add " + wanNodes + wanBits + " dev " + far,
		"-n " + l.netns + " link set lo up",
		"-n " + l.netns + " link set " + far + " up",
	} {
		if err := l.ip(args); err != nil {
			return nil, errors.Join(err, l.remove())
		}
	}
	return l, nil
}

func (l *link) ip(args string) error {
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", args, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// remove takes the namespace away, and with it the link.
func (l *link) remove() error {
	err := l.ip("netns del " + l.netns)
	if _, serr := os.Stat("/sys/class/net/" + l.near); serr == nil {
		_ = l.ip("link del " + l.near) // the pair's other end may be on its way out already
	}
	return err
}

// counters are what has come up from the nodes, and gone down to them, so far, in IP packets.
func (l *link) counters() (c [2]traffic, err error) {
	for i, way := range []string{"rx", "tx"} {
		packets, err := l.counter(way + "_packets")
		if err != nil {
			return c, err
		}
		bytes, err := l.counter(way + "_bytes")
		if err != nil {
			return c, err
		}
		c[i] = traffic{Packets: packets, Bytes: bytes - packets*ethernetHeader}
	}
	return c, nil
}

func (l *link) counter(name string) (int64, error) {
	data, err := os.ReadFile("/sys/class/net/" + l.near + "/statistics/" + name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

func (t traffic) minus(o traffic) traffic { return traffic{t.Packets - o.Packets, t.Bytes - o.Bytes} }

func writeWAN(w io.Writer, all []*wanReport) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(tw, "transport\tagents\tidle for\tup\tdown\tper agent and day\ta session's beginning")
	for _, r := range all {
		fmt.Fprintf(tw, "%s\t%d\t%s\t%d packets, %s\t%d packets, %s\t%.2f MB\t%s\n", r.Transport, r.Agents, seconds(r.Window),
			r.Up.Packets, kb(r.Up.Bytes), r.Down.Packets, kb(r.Down.Bytes), r.PerAgentDay/1e6, kb(int64(r.PerConnection)))
	}
	return tw.Flush()
}
