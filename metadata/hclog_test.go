package metadata

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/hashicorp/go-hclog"
)

func TestRaftLog(t *testing.T) {
	var out bytes.Buffer
	plain := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	logger := func(level slog.Level) hclog.Logger {
		return newRaftLog(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level, ReplaceAttr: plain})))
	}
	log := logger(slog.LevelInfo)
	log.Warn("raft's own affair")
	for range 3 {
		log.Named("net").With("peer", 1).Error("slow", "servers", hclog.Fmt("%+v of %d", []int{1}, 2), "n", 3)
	}
	log.StandardLogger(nil).Print("plain")
	logger(slog.LevelDebug).Info("for debugging")
	const want = "level=WARN msg=slow peer=1 servers=\"[1] of 2\" n=3\nlevel=INFO msg=plain\nlevel=DEBUG msg=\"for debugging\"\n"
	if out.String() != want {
		t.Errorf("%s, want %s", out.String(), want)
	}
	if log.IsWarn() || !log.IsError() {
		t.Error("the level is not the node's")
	}
}
