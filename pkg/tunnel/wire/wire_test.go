package wire

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestCodes(t *testing.T) {
	seen := make(map[string]bool)
	for c := OK; c <= Quarantined; c++ {
		s := c.String()
		if s == "" || strings.HasPrefix(s, "code ") || seen[s] {
			t.Errorf("code %d reads %q", c, s)
		}
		seen[s] = true
		if st := c.HTTPStatus(); st < 200 || st > 599 || (st == 200) != (c == OK) {
			t.Errorf("%s maps to HTTP status %d", c, st)
		}
	}
	if s := Code(200).String(); s != "code 200" {
		t.Errorf("a code unknown reads %q", s)
	}
	if st := Code(200).HTTPStatus(); st != 502 {
		t.Errorf("a code unknown maps to %d", st)
	}
}

// TestGolden pins the bytes: they are a promise to peers of other versions.
func TestGolden(t *testing.T) {
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, tc := range []struct {
		got  []byte
		want string
	}{
		{must(AppendPreamble(nil, Preamble{KindDial, "edge-1:10250", Trace{}})), "\x4d\x02\x00\x0cedge-1:10250\x00"},
		{must(AppendPreamble(nil, Preamble{KindDial, "edge-1:10250", someTrace})), "\x4d\x02\x00\x0cedge-1:10250\x190123456789abcdefSPANspan\x01"},
		{must(AppendPreamble(nil, Preamble{KindControl, "", Trace{}})), "\x4d\x01\x00\x00\x00"},
		{AppendAnswer(nil, Answer{NotFound, "no node"}), "\x01\x00\x07no node"},
		{AppendAnswer(nil, Answer{}), "\x00\x00\x00"},
		{must(AppendFrame(nil, Frame{9, bytes.Repeat([]byte("x"), 200)})), "\x09\xc8\x01" + strings.Repeat("x", 200)},
		{AppendPing(nil, FramePing, Ping{ID: 1, RTT: 256}), "\x02\x10\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01\x00"},
		{AppendReset(nil, Reset{Stream: 7, Code: Canceled, What: ResetSend | ResetStop}), "\x04\x06\x00\x00\x00\x07\x0a\x03"},
		{AppendDrain(nil, Drain{5 * time.Second}), "\x05\x04\x00\x00\x13\x88"},
		{AppendDrain(nil, Drain{48 * time.Hour}), "\x05\x04\x00\x36\xee\x80"},
		{AppendDrain(nil, Drain{-1}), "\x05\x04\x00\x00\x00\x00"},
		{AppendGoodbye(nil, Goodbye{Shutdown, "bye"}), "\x06\x04\x0ebye"},
		{must(AppendHello(nil, Hello{Version: "v1", Node: "n"})), "\x01\x1b{\"version\":\"v1\",\"node\":\"n\"}"},
	} {
		if string(tc.got) != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
}

// someTrace is one that can be read.
var someTrace = Trace{ID: [16]byte([]byte("0123456789abcdef")), Span: [8]byte([]byte("SPANspan")), Flags: FlagSampled}

func TestPreamble(t *testing.T) {
	for _, p := range []Preamble{
		{KindControl, "", Trace{}}, {KindDial, "node:10250", someTrace}, {KindAPI, "", NewTrace()},
		{99, strings.Repeat("a", MaxTarget), Trace{}}, {99, strings.Repeat("a", MaxTarget), Trace{ID: someTrace.ID, Span: someTrace.Span, Flags: 0xff}},
	} {
		b, err := AppendPreamble(nil, p)
		if err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(append(b, "rest"...))
		got, err := ReadPreamble(iotest.OneByteReader(r))
		if err != nil || got != p || r.Len() != 4 {
			t.Errorf("%+v came back as %+v, %v, with %d bytes left", p, got, err, r.Len())
		}
		truncations(t, b, func(r io.Reader) error { _, err := ReadPreamble(r); return err })
	}
	for _, p := range []Preamble{
		{0, "", Trace{}}, {KindDial, strings.Repeat("a", MaxTarget+1), Trace{}}, {KindDial, "a b", Trace{}}, {KindDial, "a\n", Trace{}},
		{KindDial, "\u00e9", Trace{}}, {KindDial, "", Trace{ID: someTrace.ID}}, {KindDial, "", Trace{Span: someTrace.Span}}, {KindDial, "", Trace{Flags: 1}},
	} {
		if _, err := AppendPreamble(nil, p); err == nil {
			t.Errorf("%+v was encoded", p)
		}
	}
	for _, s := range []string{
		"\x00\x01\x00\x00", "\x4d\x00\x00\x00", "\x4d\x01\x02\x01", "\x4d\x01\x00\x01\n", "GET ",
		"\x4d\x01\x00\x00\x01", "\x4d\x01\x00\x00\x18", "\x4d\x01\x00\x00\x1a", "\x4d\x01\x00\x00\xff",
		"\x4d\x01\x00\x00\x19" + strings.Repeat("\x00", 16), "\x4d\x01\x00\x00\x19" + strings.Repeat("i", 16) + strings.Repeat("\x00", 8),
	} {
		if _, err := ReadPreamble(strings.NewReader(s + strings.Repeat("a", 600))); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v, want malformed", s, err)
		}
	}
}

func TestTraceNamesADial(t *testing.T) {
	if got := someTrace.String(); got != "30313233343536373839616263646566" {
		t.Errorf("shown as %q", got)
	}
	if s := (Trace{}).String(); s != "" {
		t.Errorf("none is shown as %q", s)
	}
	a, b := NewTrace(), NewTrace()
	if !a.Valid() || a.ID == b.ID || a.Span == b.Span || a.Flags != 0 {
		t.Errorf("two new ones: %+v, %+v", a, b)
	}
}

func TestAnswer(t *testing.T) {
	for _, a := range []Answer{{}, {NotFound, ""}, {Denied, "not in the policy"}, {200, strings.Repeat("m", MaxMessage)}} {
		b := AppendAnswer(nil, a)
		r := bytes.NewReader(append(b, "rest"...))
		got, err := ReadAnswer(iotest.OneByteReader(r))
		if err != nil || got != a || r.Len() != 4 {
			t.Errorf("%+v came back as %+v, %v, with %d bytes left", a, got, err, r.Len())
		}
		truncations(t, b, func(r io.Reader) error { _, err := ReadAnswer(r); return err })
	}
	long, err := ReadAnswer(bytes.NewReader(AppendAnswer(nil, Answer{Internal, strings.Repeat("\u00e9", MaxMessage)})))
	if err != nil || len(long.Message) != MaxMessage || strings.Contains(long.Message, "?") {
		t.Errorf("a long message came back with %d bytes, %v", len(long.Message), err)
	}
	ugly, err := ReadAnswer(strings.NewReader("\x05\x00\x05a\nb\xff\x1b"))
	if err != nil || ugly.Message != "a?b??" {
		t.Errorf("an ugly message came back as %q, %v", ugly.Message, err)
	}
	if _, err := ReadAnswer(strings.NewReader("\x01\xff\xff")); !errors.Is(err, ErrMalformed) {
		t.Errorf("an oversize message: %v", err)
	}
}

// truncations checks that each part of a message is an error, and not a clean end but at 0 bytes.
func truncations(t *testing.T, b []byte, read func(io.Reader) error) {
	t.Helper()
	for i := range b {
		err := read(bytes.NewReader(b[:i]))
		if err == nil || i > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q cut to %d bytes: %v", b, i, err)
		}
	}
}

func TestFrames(t *testing.T) {
	payloads := [][]byte{nil, []byte("x"), make([]byte, 127), make([]byte, 128), make([]byte, MaxFrame)}
	var all []byte
	for i, p := range payloads {
		var err error
		if all, err = AppendFrame(all, Frame{FrameType(i + 1), p}); err != nil {
			t.Fatal(err)
		}
	}
	r := bufio.NewReader(iotest.HalfReader(bytes.NewReader(all)))
	buf := make([]byte, 100)
	for i, p := range payloads {
		f, err := ReadFrame(r, buf)
		if err != nil || f.Type != FrameType(i+1) || !bytes.Equal(f.Payload, p) {
			t.Errorf("frame %d: type %d, %d bytes, %v", i, f.Type, len(f.Payload), err)
		}
	}
	if _, err := ReadFrame(r, buf); err != io.EOF {
		t.Errorf("at the end: %v, want io.EOF itself", err)
	}
	b, _ := AppendFrame(nil, Frame{1, make([]byte, 300)})
	truncations(t, b, func(r io.Reader) error { _, err := ReadFrame(bufio.NewReader(r), nil); return err })
	if _, err := AppendFrame(nil, Frame{1, make([]byte, MaxFrame+1)}); err == nil {
		t.Error("an oversize frame was encoded")
	}
	for _, s := range []string{"\x01\x81\x80\x04", "\x01\xff\xff\xff\x01", "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"} {
		if _, err := ReadFrame(bufio.NewReader(strings.NewReader(s)), nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v, want malformed", s, err)
		}
	}
}

// payload strips the frame's head.
func payload(t *testing.T, b []byte) []byte {
	t.Helper()
	f, err := ReadFrame(bufio.NewReader(bytes.NewReader(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return f.Payload
}

func TestControlMessages(t *testing.T) {
	ping := Ping{ID: 1<<63 + 5, RTT: 1234567}
	if got, err := ParsePing(payload(t, AppendPing(nil, FramePong, ping))); err != nil || got != ping {
		t.Errorf("ping %+v, %v", got, err)
	}
	reset := Reset{1 << 31, Superseded, ResetStop}
	if got, err := ParseReset(payload(t, AppendReset(nil, reset))); err != nil || got != reset {
		t.Errorf("reset %+v, %v", got, err)
	}
	drain := Drain{1500 * time.Millisecond}
	if got, err := ParseDrain(payload(t, AppendDrain(nil, drain))); err != nil || got != drain {
		t.Errorf("drain %+v, %v", got, err)
	}
	if got, err := ParseDrain([]byte{0xff, 0xff, 0xff, 0xff}); err != nil || got.Delay != MaxDrainDelay {
		t.Errorf("a drain without end: %+v, %v", got, err)
	}
	bye := Goodbye{Revoked, "ask your operator"}
	if got, err := ParseGoodbye(payload(t, AppendGoodbye(nil, bye))); err != nil || got != bye {
		t.Errorf("goodbye %+v, %v", got, err)
	}
	long := AppendGoodbye(nil, Goodbye{Internal, strings.Repeat("x", 1<<20)})
	if got, err := ParseGoodbye(payload(t, long)); err != nil || len(got.Message) != MaxMessage {
		t.Errorf("a long goodbye: %d bytes, %v", len(got.Message), err)
	}
	for what, err := range map[string]error{
		"ping":    errOf(ParsePing(make([]byte, pingSize-1))),
		"rtt":     errOf(ParsePing(bytes.Repeat([]byte{0xff}, pingSize))),
		"reset":   errOf(ParseReset(make([]byte, resetSize-1))),
		"drain":   errOf(ParseDrain(make([]byte, 3))),
		"goodbye": errOf(ParseGoodbye(nil)),
		"essay":   errOf(ParseGoodbye(make([]byte, 2+MaxMessage))),
	} {
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want malformed", what, err)
		}
	}
}

// lineage makes n different instances.
func lineage(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprintf("%016x", i+1))
	}
	return all
}

func errOf[T any](_ T, err error) error { return err }

func TestHello(t *testing.T) {
	h := Hello{
		Version: "v1.2.3", Features: []string{"drain"}, Node: "edge-1", Generation: 1 << 60, KubeletPort: 10250,
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.1.10"), netip.MustParseAddr("2001:db8::1")},
		Instance:  "00112233445566ff", Ancestors: []string{"aaaaaaaaaaaaaaaa", "0000000000000001"}, Volatile: true,
	}
	b, err := AppendHello(nil, h)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseHello(payload(t, b)); err != nil || !reflect.DeepEqual(got, h) {
		t.Errorf("%+v came back as %+v, %v", h, got, err)
	}
	if _, err := ParseHello([]byte(`{"version":"v9","new":{"deep":[1]}}`)); err != nil {
		t.Errorf("an unknown field: %v", err)
	}
	for what, s := range map[string]string{
		"nothing":            ``,
		"no object":          `"hello"`,
		"two":                `{}{}`,
		"an address":         `{"addresses":["192.168.1.300"]}`,
		"a zone":             `{"addresses":["fe80::1%eth0"]}`,
		"an empty address":   `{"addresses":[""]}`,
		"too many addresses": `{"addresses":["10.0.0.1"` + strings.Repeat(`,"10.0.0.1"`, MaxAddresses) + `]}`,
		"too many features":  `{"features":["a"` + strings.Repeat(`,"a"`, MaxFeatures) + `]}`,
		"an empty feature":   `{"features":[""]}`,
		"a long node":        `{"node":"` + strings.Repeat("n", 254) + `"}`,
		"a long version":     `{"version":"` + strings.Repeat("n", 129) + `"}`,
		"a port":             `{"kubeletPort":65536}`,
		"a negative count":   `{"generation":-1}`,
		"a short instance":   `{"instance":"0011"}`,
		"no hex":             `{"instance":"0123456789abcdeF"}`,
		"orphans":            `{"ancestors":["0123456789abcdef"]}`,
		"an odd ancestor":    `{"instance":"0123456789abcdef","ancestors":["x"]}`,
		"its own ancestor":   `{"instance":"0123456789abcdef","ancestors":["0123456789abcdef"]}`,
		"an ancestor twice":  `{"instance":"0123456789abcdef","ancestors":["0123456789abcde0","0123456789abcde0"]}`,
		"too many ancestors": `{"instance":"0123456789abcdef","ancestors":["` + strings.Join(lineage(MaxAncestors+1), `","`) + `"]}`,
		"all too long":       `{"x":"` + strings.Repeat("n", maxHelloPayload) + `"}`,
	} {
		if _, err := ParseHello([]byte(s)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want malformed", what, err)
		}
	}
	most := Hello{Instance: "0123456789abcdef", Ancestors: lineage(MaxAncestors)}
	if b, err = AppendHello(nil, most); err != nil {
		t.Errorf("the longest lineage: %v", err)
	} else if got, err := ParseHello(payload(t, b)); err != nil || !reflect.DeepEqual(got, most) {
		t.Errorf("%+v came back as %+v, %v", most, got, err)
	}
	if _, err := AppendHello(nil, Hello{Features: []string{""}}); err == nil {
		t.Error("a hello out of bounds was encoded")
	}
}

func FuzzReadPreamble(f *testing.F) {
	f.Add([]byte("\x4d\x02\x00\x0cedge-1:10250\x00rest"))
	f.Add([]byte("\x4d\x02\x00\x0cedge-1:10250\x190123456789abcdefSPANspan\x01rest"))
	f.Add([]byte("\x4d\x03\x00\x00\x19" + strings.Repeat("\x00", TraceSize)))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		p, err := ReadPreamble(r)
		if err != nil {
			return
		}
		again, err := AppendPreamble(nil, p)
		if err != nil || !bytes.Equal(again, b[:len(b)-r.Len()]) {
			t.Fatalf("%q was read as %+v, which is %q, %v", b, p, again, err)
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	f.Add([]byte("\x01\x00\x07no noderest"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		a, err := ReadAnswer(r)
		if err != nil {
			return
		}
		again, err := ReadAnswer(bytes.NewReader(AppendAnswer(nil, a)))
		if err != nil || again != a || len(a.Message) > MaxMessage {
			t.Fatalf("%q was read as %+v, and again as %+v, %v", b, a, again, err)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	f.Add(AppendPing(AppendGoodbye(AppendDrain(AppendReset(nil, Reset{1, 2, 3}), Drain{1}), Goodbye{1, "x"}), FramePing, Ping{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		buf := make([]byte, 64)
		for {
			fr, err := ReadFrame(r, buf)
			if err != nil {
				return
			}
			if len(fr.Payload) > MaxFrame {
				t.Fatalf("a payload of %d bytes", len(fr.Payload))
			}
			parseAny(t, fr)
		}
	})
}

// parseAny parses a payload, and what that is encoded as once more.
func parseAny(t *testing.T, fr Frame) {
	var first, second any
	var err, err2 error
	switch fr.Type {
	case FramePing, FramePong:
		var p Ping
		p, err = ParsePing(fr.Payload)
		first = p
		second, err2 = ParsePing(payload(t, AppendPing(nil, fr.Type, p)))
	case FrameReset:
		var r Reset
		r, err = ParseReset(fr.Payload)
		first = r
		second, err2 = ParseReset(payload(t, AppendReset(nil, r)))
	case FrameDrain:
		var d Drain
		d, err = ParseDrain(fr.Payload)
		first = d
		second, err2 = ParseDrain(payload(t, AppendDrain(nil, d)))
	case FrameGoodbye:
		var g Goodbye
		g, err = ParseGoodbye(fr.Payload)
		first = g
		second, err2 = ParseGoodbye(payload(t, AppendGoodbye(nil, g)))
	default:
		return
	}
	if err == nil && (err2 != nil || first != second) {
		t.Fatalf("%+v was encoded to something else: %+v, %v", first, second, err2)
	}
}

func FuzzParseHello(f *testing.F) {
	f.Add([]byte(`{"version":"v1","node":"edge-1","addresses":["10.0.0.1"],"features":["a"],"generation":3,"kubeletPort":10250}`))
	f.Add([]byte(`{"instance":"0123456789abcdef","ancestors":["0123456789abcde0","0123456789abcde1"],"volatile":true}`))
	f.Add([]byte(`{"ancestors":["0123456789abcde0"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHello(b)
		if err != nil {
			return
		}
		if len(h.Addresses) > MaxAddresses || len(h.Features) > MaxFeatures || len(h.Ancestors) > MaxAncestors || len(h.Instance) > InstanceLen {
			t.Fatalf("out of bounds: %+v", h)
		}
		enc, err := AppendHello(nil, h)
		if err != nil {
			if len(b) > maxHelloPayload/6 { // escapes may make it longer than it was
				return
			}
			t.Fatalf("%q was read as %+v, which can not be encoded: %v", b, h, err)
		}
		again, err := ParseHello(payload(t, enc))
		if err != nil || fmt.Sprint(again) != fmt.Sprint(h) {
			t.Fatalf("%+v came back as %+v, %v", h, again, err)
		}
	})
}

const someHash = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestBundle(t *testing.T) {
	want := Bundle{CABundle: "-----BEGIN CERTIFICATE-----\n...", Issuer: someHash}
	b, err := AppendBundle(nil, want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseBundle(payload(t, b)); err != nil || got != want {
		t.Errorf("%+v came back as %+v, %v", want, got, err)
	}
	if _, err := ParseBundle([]byte(`{"caBundle":"x","issuer":"` + someHash + `","new":[1]}`)); err != nil {
		t.Errorf("an unknown field: %v", err)
	}
	for what, s := range map[string]string{
		"nothing":        ``,
		"no bundle":      `{"issuer":"` + someHash + `"}`,
		"no issuer":      `{"caBundle":"x"}`,
		"half an issuer": `{"caBundle":"x","issuer":"` + someHash[:40] + `"}`,
		"capitals":       `{"caBundle":"x","issuer":"` + strings.Replace(someHash, "a", "A", 1) + `"}`,
		"another hash":   `{"caBundle":"x","issuer":"` + strings.Replace(someHash, "256", "512", 1) + `"}`,
		"too long":       `{"caBundle":"` + strings.Repeat("x", MaxFrame) + `","issuer":"` + someHash + `"}`,
	} {
		if _, err := ParseBundle([]byte(s)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want malformed", what, err)
		}
	}
	if _, err := AppendBundle(nil, Bundle{CABundle: strings.Repeat("\n", MaxFrame-100), Issuer: someHash}); err == nil {
		t.Error("a bundle that is too long once encoded was encoded")
	}
	if _, err := AppendBundle(nil, Bundle{CABundle: "x"}); err == nil {
		t.Error("a bundle out of bounds was encoded")
	}
}

func TestStatus(t *testing.T) {
	want := Status{Trusts: []string{someHash}, CertificateIssuer: someHash, CertificateNotAfter: time.Date(2031, 1, 2, 3, 4, 5, 0, time.UTC)}
	b, err := AppendStatus(nil, want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseStatus(payload(t, b)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v came back as %+v, %v", want, got, err)
	}
	if got, err := ParseStatus([]byte(`{"new":[1]}`)); err != nil || !got.CertificateNotAfter.IsZero() {
		t.Errorf("a status that says nothing: %+v, %v", got, err)
	}
	for what, s := range map[string]string{
		"nothing":      ``,
		"no hash":      `{"trusts":["sha256:"]}`,
		"too many":     `{"trusts":["` + someHash + `"` + strings.Repeat(`,"`+someHash+`"`, MaxTrusts) + `]}`,
		"no issuer":    `{"certificateIssuer":"me"}`,
		"no time":      `{"certificateNotAfter":"tomorrow"}`,
		"all too long": `{"x":"` + strings.Repeat("n", maxStatusPayload) + `"}`,
	} {
		if _, err := ParseStatus([]byte(s)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want malformed", what, err)
		}
	}
	if _, err := AppendStatus(nil, Status{Trusts: []string{""}}); err == nil {
		t.Error("a status out of bounds was encoded")
	}
}

func FuzzParseBundle(f *testing.F) {
	f.Add([]byte(`{"caBundle":"-----BEGIN CERTIFICATE-----\n","issuer":"` + someHash + `"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		bundle, err := ParseBundle(b)
		if err != nil {
			return
		}
		enc, err := AppendBundle(nil, bundle)
		if err != nil {
			if len(b) > MaxFrame/6 { // escapes may make it longer than it was
				return
			}
			t.Fatalf("%q was read as %+v, which can not be encoded: %v", b, bundle, err)
		}
		if again, err := ParseBundle(payload(t, enc)); err != nil || again != bundle {
			t.Fatalf("%+v came back as %+v, %v", bundle, again, err)
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte(`{"trusts":["` + someHash + `"],"certificateIssuer":"` + someHash + `","certificateNotAfter":"2031-01-02T03:04:05Z"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseStatus(b)
		if err != nil {
			return
		}
		if len(s.Trusts) > MaxTrusts {
			t.Fatalf("out of bounds: %+v", s)
		}
		enc, err := AppendStatus(nil, s)
		if err != nil {
			t.Fatalf("%q was read as %+v, which can not be encoded: %v", b, s, err)
		}
		again, err := ParseStatus(payload(t, enc))
		if err != nil || !again.CertificateNotAfter.Equal(s.CertificateNotAfter) || !slices.Equal(again.Trusts, s.Trusts) || again.CertificateIssuer != s.CertificateIssuer {
			t.Fatalf("%+v came back as %+v, %v", s, again, err)
		}
	})
}
