package metadata

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// raftLog gives raft and its log store, which know hclog only, the node's
// logger. Raft tells its life to those who debug raft, and a dead member with
// each of many attempts: what it calls an error is a warning here, once in a
// while, and all else is for debugging. Who leads is told in our own words.
type raftLog struct {
	log   *slog.Logger
	name  string
	args  []any
	again *repeats
}

// repeats remembers when each message was last let through. Raft's messages are
// constants, so there are few.
type repeats struct {
	mu   sync.Mutex
	last map[string]time.Time
}

const repeatAfter = 15 * time.Second

func newRepeats() *repeats { return &repeats{last: make(map[string]time.Time)} }

func newRaftLog(log *slog.Logger) raftLog { return raftLog{log: log, again: newRepeats()} }

// due reports whether msg may be told, and counts it as told.
func (a *repeats) due(msg string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	if now.Sub(a.last[msg]) < repeatAfter {
		return false
	}
	a.last[msg] = now
	return true
}

func level(l hclog.Level) slog.Level {
	if l == hclog.Error {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func (l raftLog) Log(lv hclog.Level, msg string, args ...any) {
	ctx := context.Background()
	if !l.log.Enabled(ctx, level(lv)) || lv == hclog.Error && !l.again.due(msg) {
		return
	}
	plain := make([]any, len(args))
	for i, a := range args {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 { // hclog formats these late
			a = fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
		}
		plain[i] = a
	}
	l.log.Log(ctx, level(lv), msg, plain...)
}

func (l raftLog) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l raftLog) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l raftLog) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l raftLog) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l raftLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l raftLog) enabled(lv hclog.Level) bool {
	return l.log.Enabled(context.Background(), level(lv))
}

func (l raftLog) IsTrace() bool { return false }
func (l raftLog) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l raftLog) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l raftLog) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l raftLog) IsError() bool { return l.enabled(hclog.Error) }

func (l raftLog) ImpliedArgs() []any { return l.args }
func (l raftLog) Name() string       { return l.name }

func (l raftLog) With(args ...any) hclog.Logger {
	return raftLog{l.log.With(args...), l.name, append(l.args[:len(l.args):len(l.args)], args...), l.again}
}
func (l raftLog) Named(name string) hclog.Logger {
	return l.ResetNamed(strings.TrimPrefix(l.name+"."+name, "."))
}
func (l raftLog) ResetNamed(name string) hclog.Logger {
	return raftLog{l.log, name, l.args, l.again}
}

// The node's logger decides about levels.
func (l raftLog) SetLevel(hclog.Level)  {}
func (l raftLog) GetLevel() hclog.Level { return hclog.NoLevel }

func (l raftLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.log.Handler(), slog.LevelInfo)
}
func (l raftLog) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
