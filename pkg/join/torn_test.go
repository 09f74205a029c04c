package join

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// damages are the ways in which a file is found after power was lost.
var damages = map[string]func([]byte) []byte{
	"empty":   func([]byte) []byte { return nil },
	"zeroes":  func(b []byte) []byte { return make([]byte, len(b)) },
	"half":    func(b []byte) []byte { return b[:len(b)/2] },
	"cut":     func(b []byte) []byte { return b[:len(b)-30] },
	"garbage": func(b []byte) []byte { return bytes.Repeat([]byte("\xff\x00x"), len(b)/3) },
}

func damage(t *testing.T, path string, how func([]byte) []byte) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := how(data)
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	return bad
}

func TestTornIdentityEnrolsAgainWithTheSameKey(t *testing.T) {
	for name, how := range damages {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			before := s.mustAll()
			damage(t, New(s.cfg).identityFile(), how)
			after := s.mustAll()
			if after.Fingerprint() != before.Fingerprint() || after.Node != before.Node {
				t.Errorf("was %s (%s), is %s (%s)", before.Node, before.Fingerprint(), after.Node, after.Fingerprint())
			}
			if n, joins, _ := s.broker.Counts(); n != 2 || joins != 1 {
				t.Errorf("%d enrolments and %d joins, want 2 and 1: the kubelet's files were whole", n, joins)
			}
		})
	}
}

func TestForeignIdentityIsNotTaken(t *testing.T) {
	s := newSite(t)
	s.mustAll()
	path := New(s.cfg).identityFile()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var id Identity
	if err := json.Unmarshal(data, &id); err != nil {
		t.Fatal(err)
	}
	id.Node = "edge-2" // what an editor could do; the certificate says otherwise
	if data, err = json.Marshal(id); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(s.cfg).LoadIdentity(); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("err %v", err)
	}
}

func TestDamagedKeyOfAnEnrolledNodeIsLeftAlone(t *testing.T) {
	for name, how := range damages {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.mustAll()
			j := New(s.cfg)
			bad := damage(t, j.keyFile(), how)
			// Even with the identity gone too, as after a bad crash: its file says that there was one.
			damage(t, j.identityFile(), damages["empty"])

			s.cfg.StopOnRefusal = true
			_, err := s.enrol(s.cfg)
			if !errors.Is(err, ErrKeyDamaged) || !strings.Contains(err.Error(), "edge-agent reset") {
				t.Errorf("err %v", err)
			}
			if now, err := os.ReadFile(j.keyFile()); err != nil || !bytes.Equal(now, bad) {
				t.Errorf("the key's file was touched (%v)", err)
			}
			if n, _, _ := s.broker.Counts(); n != 1 {
				t.Errorf("the broker was asked %d times", n)
			}
		})
	}
}

func TestMissingKeyOfAnEnrolledNodeIsNamed(t *testing.T) {
	s := newSite(t)
	s.mustAll()
	j := New(s.cfg)
	if err := os.Remove(j.keyFile()); err != nil {
		t.Fatal(err)
	}
	s.cfg.StopOnRefusal = true
	if _, err := s.enrol(s.cfg); !errors.Is(err, ErrKeyDamaged) {
		t.Errorf("err %v", err)
	}
	if _, err := os.Stat(j.keyFile()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another key was made (%v)", err)
	}
}

func TestDamagedKeyBeforeEnrolmentIsSetAside(t *testing.T) {
	for name, how := range damages {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			if _, err := s.all(stopAt(s.cfg, keyWritten)); !errors.Is(err, errStopped) {
				t.Fatal(err)
			}
			bad := damage(t, New(s.cfg).keyFile(), how)
			s.mustAll()
			aside, _ := filepath.Glob(filepath.Join(s.cfg.StateDir, "node.key.damaged-*"))
			if len(aside) != 1 {
				t.Fatalf("set aside: %v", aside)
			}
			if kept, err := os.ReadFile(aside[0]); err != nil || !bytes.Equal(kept, bad) {
				t.Errorf("what was set aside is not what was there (%v)", err)
			}
		})
	}
}

// TestUnreadableKeyIsNotReplaced: an error that may pass (here: a directory in the way) costs no key.
func TestUnreadableKeyIsNotReplaced(t *testing.T) {
	s := newSite(t)
	if err := os.MkdirAll(New(s.cfg).keyFile(), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := New(s.cfg).nodeKey(); err == nil {
		t.Error("a key was made in the place of one that could not be read")
	}
	if n, _, _ := s.broker.Counts(); n != 0 {
		t.Error("the broker was asked without a key")
	}
}
