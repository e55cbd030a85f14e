//go:build unix

package node

import (
	"bufio"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"
)

// TestAuditLogIntoAPipe: a reader that stops reading holds up no requests, and
// has whole lines again once it goes on.
func TestAuditLogIntoAPipe(t *testing.T) {
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer in.Close()
	var log logRecord
	w := &auditWriter{to: in, log: slog.New(slog.NewTextHandler(&log, nil))}
	line := []byte(strings.Repeat("x", 999) + "\n")
	for range 1000 { // far more than a pipe holds
		_, _ = w.Write(line)
	}
	if got := log.with("level=ERROR", "audit log"); len(got) != 1 {
		t.Errorf("told %q", got)
	}
	last := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() && lines.Text() != "last" {
			continue
		}
		last <- lines.Text()
	}()
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, err := w.Write([]byte("last\n")); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if got := <-last; got != "last" {
		t.Errorf("read %q", got)
	}
}
