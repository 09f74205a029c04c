package strangers

import (
	"bytes"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func from(addr string) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 40000))
}

// enter wants a place.
func enter(t *testing.T, d *Door, addr string) (leave func()) {
	t.Helper()
	leave, err := d.Enter(from(addr))
	if err != nil {
		t.Fatalf("%s: %v", addr, err)
	}
	return leave
}

func refused(t *testing.T, d *Door, a net.Addr, want error) {
	t.Helper()
	if _, err := d.Enter(a); !errors.Is(err, want) {
		t.Fatalf("%v: %v; want %v", a, err, want)
	}
}

func TestPlaces(t *testing.T) {
	reg := prometheus.NewRegistry()
	d := NewDoor(Config{Port: "front", Limits: Limits{Max: 4, MaxPerSource: 2}, Registerer: reg})
	leave := enter(t, d, "192.0.2.1")
	enter(t, d, "192.0.2.1")
	refused(t, d, from("192.0.2.1"), ErrSourceTooMany)
	refused(t, d, from("::ffff:192.0.2.1"), ErrSourceTooMany)
	enter(t, d, "2001:db8::1")
	other := enter(t, d, "2001:db8::2")
	refused(t, d, from("2001:db8::3"), ErrSourceTooMany)
	refused(t, d, from("2001:db8:0:1::3"), ErrTooMany)
	refused(t, d, nil, ErrTooMany)
	other()
	other() // does nothing
	enter(t, d, "2001:db8:0:1::3")
	refused(t, d, from("2001:db8:0:1::3"), ErrTooMany)
	leave()
	enter(t, d, "192.0.2.1")
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP mooring_connections_refused_total Connections closed at once, over a bound on those that have not authenticated: total, source (too many at a time), rate, source_rate (too fast).
# TYPE mooring_connections_refused_total counter
mooring_connections_refused_total{port="front",reason="rate"} 0
mooring_connections_refused_total{port="front",reason="source"} 3
mooring_connections_refused_total{port="front",reason="source_rate"} 0
mooring_connections_refused_total{port="front",reason="total"} 3
# HELP mooring_unauthenticated_connections Connections whose peer has not shown yet who it is.
# TYPE mooring_unauthenticated_connections gauge
mooring_unauthenticated_connections{port="front"} 4
`)); err != nil {
		t.Error(err)
	}
}

func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDoor(Config{Limits: Limits{Rate: 5, RatePerSource: 2}})
		for range 2 * defaultBurst {
			enter(t, d, "192.0.2.1")()
		}
		for range 100 { // which costs nobody else a thing
			refused(t, d, from("192.0.2.1"), ErrSourceTooFast)
		}
		for range 2 * defaultBurst {
			enter(t, d, "2001:db8::1")()
		}
		for range defaultBurst { // what is left of the 20 that may come at once
			enter(t, d, "192.0.2.2")()
		}
		refused(t, d, from("192.0.2.2"), ErrTooFast)
		time.Sleep(time.Second)
		enter(t, d, "192.0.2.1")
		enter(t, d, "192.0.2.1")
		refused(t, d, from("192.0.2.1"), ErrSourceTooFast)
		enter(t, d, "192.0.2.3")
	})
}

func TestNoLimits(t *testing.T) {
	d := NewDoor(Config{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if leave, err := d.Enter(from("192.0.2.1")); err != nil {
					t.Error(err)
				} else {
					leave()
				}
			}
		})
	}
	wg.Wait()
	if d.total != 0 || len(d.sources) != 0 {
		t.Errorf("%d strangers, %d sources are left; want none", d.total, len(d.sources))
	}
}

// TestSourcesAreBounded: who has a great many addresses fills neither the memory nor, for long, the others' room.
func TestSourcesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewDoor(Config{Limits: Limits{RatePerSource: 1}})
		addr := netip.MustParseAddr("10.0.0.0")
		next := func() net.Addr {
			addr = addr.Next()
			return net.TCPAddrFromAddrPort(netip.AddrPortFrom(addr, 1))
		}
		time.Sleep(time.Hour)
		for range maxSources {
			leave, err := d.Enter(next())
			if err != nil {
				t.Fatal(err)
			}
			leave()
		}
		for range defaultBurst { // one account for all whom there is no room for
			if _, err := d.Enter(next()); err != nil {
				t.Fatal(err)
			}
		}
		refused(t, d, next(), ErrSourceTooFast)
		if len(d.sources) > maxSources+1 {
			t.Errorf("%d sources are kept", len(d.sources))
		}
		time.Sleep(time.Minute)
		enter(t, d, "192.0.2.1")
		if len(d.sources) > 2 {
			t.Errorf("%d sources are kept after a minute, want the one that is there and the shared one", len(d.sources))
		}
	})
}

func TestRefusalsAreLoggedOnceAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		d := NewDoor(Config{Port: "front", Limits: Limits{Max: 1}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		enter(t, d, "192.0.2.1")
		for range 1000 {
			refused(t, d, from("192.0.2.9"), ErrTooMany)
		}
		if n := strings.Count(log.String(), "\n"); n != 1 {
			t.Errorf("%d lines for 1000 refusals, want 1:\n%s", n, log.String())
		}
		time.Sleep(logEvery)
		refused(t, d, nil, ErrTooMany)
		if !strings.Contains(log.String(), "sinceLastLine=1000") || strings.Count(log.String(), "\n") != 2 {
			t.Errorf("the log has no second line that counts what it left out:\n%s", log.String())
		}
	})
}
