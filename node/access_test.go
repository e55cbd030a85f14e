package node

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
)

// TestSayWhoMay: a node that others reach says what anybody may do there, of the
// mesh that it joins and not of what it knew before.
func TestSayWhoMay(t *testing.T) {
	const anybody, plain = "anyone who reaches it may pull", "takes passwords over plain HTTP"
	for _, row := range []struct {
		name       string
		accounts   bool
		says, lies string
	}{
		{"a mesh without accounts", false, anybody, plain},
		{"a mesh with accounts", true, plain, anybody},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCluster(t, 1)
			if row.accounts {
				if _, _, err := c.nodes[0].auth.AddUser(t.Context(), "test", "root", "rootrootroot", false); err != nil {
					t.Fatal(err)
				}
			}
			var log logRecord
			c.add(func(cfg *Config) {
				cfg.Listen, cfg.Log = "0.0.0.0:0", slog.New(slog.NewTextHandler(&log, nil))
			})
			c.await("what the node says", func() error {
				if len(log.with("level=WARN", row.says)) == 0 {
					return errors.New("it has not said " + row.says)
				}
				return nil
			})
			if got := log.with(row.lies); len(got) > 0 {
				t.Errorf("it says %q", got)
			}
		})
	}
}

// full is a file on a disk that has room for so many bytes.
type full struct {
	bytes.Buffer
	room int
}

func (f *full) Write(p []byte) (int, error) {
	n := min(len(p), f.room)
	f.room -= n
	f.Buffer.Write(p[:n])
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// TestAuditLogOnAFullDisk: that lines are lost is told once, and those that come
// later can be read.
func TestAuditLogOnAFullDisk(t *testing.T) {
	var log logRecord
	disk := &full{room: 8}
	w := &auditWriter{to: disk, log: slog.New(slog.NewTextHandler(&log, nil))}
	for _, line := range []string{"first\n", "lost\n", "lost too\n"} {
		_, _ = w.Write([]byte(line))
	}
	disk.room = 100
	for _, line := range []string{"later\n", "last\n"} {
		if _, err := w.Write([]byte(line)); err != nil {
			t.Error(err)
		}
	}
	if got, want := disk.String(), "first\nlo\nlater\nlast\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if lost, again := log.with("level=ERROR", "audit log"), log.with("written again"); len(lost) != 1 || len(again) != 1 || strings.Contains(lost[0], "lost too") {
		t.Errorf("told %q and %q", lost, again)
	}
}
