package mesh

import (
	"context"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// quiet is how long a line is not repeated at a level that people see: one
// misconfigured node elsewhere must not fill this one's log.
const quiet = 5 * time.Minute

// libraryLog turns memberlist's lines into ours. It is called with memberlist's
// locks held.
type libraryLog struct {
	*log.Logger
	m *Members
}

func newLibraryLog(m *Members) *libraryLog {
	l := &libraryLog{m: m}
	l.Logger = log.New(l, "", 0)
	return l
}

// Write implements io.Writer for log.Logger, one line at a time.
func (l *libraryLog) Write(b []byte) (int, error) {
	if l.m.over() {
		return len(b), nil // its goroutines outlive Close by a moment
	}
	line := strings.TrimSpace(string(b))
	level, text := slog.LevelDebug, line
	if rest, ok := strings.CutPrefix(line, "["); ok {
		var name string
		name, text, _ = strings.Cut(rest, "] ")
		if name == "ERR" || name == "ERROR" || name == "WARN" {
			level = slog.LevelWarn
		}
	}
	text = strings.TrimPrefix(text, "memberlist: ")
	if id, ok := blockedUDP(text); ok {
		l.udp(id)
		return len(b), nil
	}
	// A node that restarts meets rumours of its former self. That is no news.
	if strings.HasPrefix(text, "Refuting ") || strings.HasPrefix(text, "Conflicting address ") {
		level = slog.LevelDebug
	}
	if level > slog.LevelDebug && !l.m.rare.first(kind(text)) {
		level = slog.LevelDebug
	}
	l.m.log.Log(context.Background(), level, "gossip: "+text)
	return len(b), nil
}

// blockedUDP finds the one line that names a fault which people can mend. A
// test with a real blocked port holds it against memberlist's wording.
func blockedUDP(text string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(text, "Was able to connect to ")
	if !ok {
		return "", false
	}
	id, _, ok = strings.Cut(rest, " over TCP but UDP probes failed")
	return id, ok
}

func (l *libraryLog) udp(id string) {
	l.m.mu.Lock()
	self, other, address := l.m.meta.Name, id, ""
	if e, ok := l.m.entries[id]; ok {
		other, address = e.Name, e.Gossip
	}
	l.m.mu.Unlock()
	if l.m.rare.first("udp " + id) {
		l.m.log.Warn("UDP between "+self+" and "+other+" seems blocked: TCP works, so the mesh does, but failures are noticed late and wrongly; open the gossip port for UDP both ways",
			"node", other, "address", address)
	}
}

// rarely remembers what was said lately. The zero value is ready.
type rarely struct {
	mu   sync.Mutex
	said map[string]time.Time
}

// first reports whether what was not said for a while, and remembers it.
func (r *rarely) first(what string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for k, at := range r.said {
		if now.Sub(at) >= quiet {
			delete(r.said, k)
		}
	}
	if _, lately := r.said[what]; lately {
		return false
	}
	if r.said == nil {
		r.said = map[string]time.Time{}
	}
	r.said[what] = now
	return true
}

// kind is the part of a line before its particulars, which keeps the number of
// kinds small.
func kind(text string) string {
	if i := strings.IndexAny(text, ":0123456789'\"("); i > 0 {
		return text[:i]
	}
	return text
}
