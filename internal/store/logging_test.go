package store

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
)

func TestLogBridge(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	z := zapLogger(log, newGuard()).With(zap.String("member", "m"))
	for name, tc := range map[string]struct {
		say  func()
		want []string // none = silence
	}{
		"debug":    {func() { z.Debug("x") }, nil},
		"info":     {func() { z.Info("x") }, nil},
		"expected": {func() { z.Warn("simple token is not cryptographically signed") }, nil},
		"warning": {func() { z.Warn("slow disk", zap.Duration("took", time.Second), zap.Error(errors.New("bad"))) },
			[]string{"level=WARN", `msg="store: slow disk"`, "member=m", "took=1s", "err=bad", "from=etcd"}},
		"error": {func() { z.Error("broken") }, []string{"level=ERROR", "broken"}},
	} {
		out.Reset()
		tc.say()
		if len(tc.want) == 0 && out.Len() > 0 {
			t.Errorf("%s: %s, want silence", name, out.String())
		}
		for _, want := range tc.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %s, want it to have %s", name, out.String(), want)
			}
		}
	}
}

func TestGuard(t *testing.T) {
	cause := syscall.EIO
	for name, say := range map[string]func(*zap.Logger){
		"fatal": func(z *zap.Logger) { z.Fatal("no log", zap.Error(cause)) },
		"panic": func(z *zap.Logger) { z.Panic("no log", zap.Error(cause)) },
	} {
		g := newGuard()
		z := zapLogger(slog.New(slog.DiscardHandler), g)
		ended, survived := make(chan struct{}), false
		go func() {
			defer close(ended)
			say(z)
			survived = true
		}()
		<-ended
		<-g.failed
		if survived || !errors.Is(g.err, cause) || !strings.Contains(g.err.Error(), "no log") {
			t.Errorf("%s while starting: survived %v, %v", name, survived, g.err)
		}

		g.started.Store(true)
		func() {
			defer func() {
				if err, ok := recover().(error); !ok || !errors.Is(err, cause) {
					t.Errorf("%s while serving: recovered %v, want the cause", name, err)
				}
			}()
			say(z)
		}()
	}
}

func TestDamaged(t *testing.T) {
	for err, corrupt := range map[error]bool{
		errors.New("crc mismatch"): true,
		syscall.ENOSPC:             false,
		syscall.EROFS:              false,
		&fs.PathError{Op: "open", Err: syscall.EACCES}: false,
	} {
		got := damaged(err)
		if errors.Is(got, ErrCorrupt) != corrupt || !errors.Is(got, err) {
			t.Errorf("damaged(%v) = %v, want ErrCorrupt = %v", err, got, corrupt)
		}
	}
}
