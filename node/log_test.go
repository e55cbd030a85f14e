package node

import (
	"bytes"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
)

// record is a log that tests can read while nodes write it.
type logRecord struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logRecord) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// with returns the lines that hold all of these.
func (l *logRecord) with(parts ...string) (lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for line := range strings.Lines(l.buf.String()) {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				continue next
			}
		}
		lines = append(lines, line)
	}
	return lines
}

// TestRequestIDCrossesNodes: one client request has one name in the logs of
// all nodes that it touches.
func TestRequestIDCrossesNodes(t *testing.T) {
	var log logRecord
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.Log = slog.New(slog.NewTextHandler(&log, nil)).With("node", cfg.Name)
	})
	follower := c.others(c.leader(0, 1, 2))[0]
	img := newImage(1000)
	c.push(follower, "app", "v1", img)
	const id = "follow-me"
	c.do(follower, http.StatusCreated, http.MethodPut, "/v2/app/manifests/v2", img.manifest,
		"X-Request-Id", id, "Content-Type", "application/vnd.oci.image.manifest.v1+json")
	here, there := c.cfgs[follower].Name, c.cfgs[c.leader(0, 1, 2)].Name
	if got := log.with("msg=request", "request="+id, "node="+here, "status=201"); len(got) != 1 {
		t.Errorf("the node asked has %d lines for the request, want 1: %q", len(got), got)
	}
	if got := log.with(`msg="peer request"`, "request="+id, "node="+there, "path=/metadata/propose"); len(got) != 1 {
		t.Errorf("the leader has %d lines for the request, want 1: %q", len(got), got)
	}
}
