package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapLogger hands etcd's warnings and errors on to log, and its fatal ones to
// the guard.
func zapLogger(log *slog.Logger, g *guard) *zap.Logger {
	return zap.New(&bridge{log: log}, zap.WithFatalHook(g), zap.WithPanicHook(g))
}

// bridge is a zapcore.Core over a slog.Logger.
type bridge struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func (b *bridge) Enabled(l zapcore.Level) bool { return l >= zapcore.WarnLevel }

func (b *bridge) With(f []zapcore.Field) zapcore.Core {
	return &bridge{log: b.log, fields: append(b.fields[:len(b.fields):len(b.fields)], f...)}
}

func (b *bridge) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !b.Enabled(e.Level) || expected(e.Message) {
		return ce
	}
	return ce.AddCore(e, b)
}

func (b *bridge) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	if e.Level >= zapcore.ErrorLevel {
		level = slog.LevelError
	}
	attrs := []slog.Attr{slog.String("from", "etcd")}
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range append(b.fields[:len(b.fields):len(b.fields)], fields...) {
		if err := fieldError(f); err != nil {
			attrs = append(attrs, slog.Any("err", err))
			continue
		}
		f.AddTo(enc)
	}
	for _, k := range slices.Sorted(maps.Keys(enc.Fields)) {
		attrs = append(attrs, slog.Any(k, enc.Fields[k]))
	}
	b.log.LogAttrs(context.Background(), level, "store: "+e.Message, attrs...)
	return nil
}

func (b *bridge) Sync() error { return nil }

// expected says that a warning is about how this package runs the server on
// purpose, or about a state that every fresh server passes through.
func expected(msg string) bool {
	switch msg {
	case "simple token is not cryptographically signed", // no authentication: nobody can call
		"Failed to detect schema version", "failed to update storage version": // before the first commit; retried
		return true
	}
	return strings.HasPrefix(msg, "Running http and grpc server on single port") || // there is no port
		strings.Contains(msg, "cannot campaign at term") // too early an election; it is held again
}

func fieldError(f zapcore.Field) error {
	if f.Type == zapcore.ErrorType {
		if err, ok := f.Interface.(error); ok {
			return err
		}
	}
	return nil
}

// guard stands where etcd's logger would panic or exit. Until started is set,
// it records the first failure and ends the calling goroutine; afterwards it
// panics: a server that cannot write its log must not go on, and the process
// is to be restarted.
type guard struct {
	started atomic.Bool
	once    sync.Once
	failed  chan struct{} // closed when err is set
	err     error
}

func newGuard() *guard { return &guard{failed: make(chan struct{})} }

func (g *guard) fail(err error) {
	g.once.Do(func() {
		g.err = err
		close(g.failed)
	})
}

// OnWrite is called by zap in the place of panic or exit.
func (g *guard) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := errors.New(ce.Message)
	for _, f := range fields {
		if cause := fieldError(f); cause != nil {
			err = fmt.Errorf("%s: %w", ce.Message, cause)
		}
	}
	if g.started.Load() {
		panic(fmt.Errorf("store: the embedded server cannot go on: %w", err))
	}
	g.fail(err)
	runtime.Goexit()
}

// damaged says that err means damaged files, unless it is plainly about the
// file system under them.
func damaged(err error) error {
	for _, other := range []error{fs.ErrPermission, syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE} {
		if errors.Is(err, other) {
			return err
		}
	}
	return fmt.Errorf("%w (restore the directory from a backup): %w", ErrCorrupt, err)
}
