package mesh

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"
)

func FuzzParseMeta(f *testing.F) {
	good, err := Meta{Name: "a", Zone: "z", Peer: "[::1]:5001", Cluster: "c", Level: 1}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	for _, s := range []string{"", "{}", "null", `{"n":"a"}`, `{"n":"a","p":"h:0"}`, `{"n":"a","p":":1"}`, `{"n":"\u0000","p":"h:1"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		if len(b) > memberlist.MetaMaxSize || m.Name == "" || strings.ContainsAny(m.Name+m.Zone+m.Cluster, "\n\x00") {
			t.Fatalf("accepted %q as %+v", b, m)
		}
		// What one node accepts it may have to say again, unless escaping
		// makes it too long.
		if again, err := m.encode(); err == nil {
			if back, err := parseMeta(again); err != nil || back != m {
				t.Fatalf("%+v came back as %+v, %v", m, back, err)
			}
		}
	})
}

func TestLibraryLog(t *testing.T) {
	var out bytes.Buffer
	m := &Members{log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})), entries: map[string]*entry{}}
	l := newLibraryLog(m)
	for _, row := range []struct {
		line string
		seen int // lines that people see
	}{
		{"[DEBUG] memberlist: Stream connection from=1.2.3.4", 0},
		{"[INFO] memberlist: Suspect x has failed, no acks received", 0},
		{"[ERR] memberlist: Decrypt packet failed: no key from=1.2.3.4:1", 1},
		{"[ERR] memberlist: Decrypt packet failed: no key from=1.2.3.4:2", 0}, // again
		{"[WARN] memberlist: Refuting a dead message (from: x)", 0},
		{"[ERR] memberlist: Conflicting address for x", 0},
		{"[WARN] memberlist: Was able to connect to x over TCP but UDP probes failed, network may be misconfigured", 1},
		{"[WARN] memberlist: Was able to connect to x over TCP but UDP probes failed, network may be misconfigured", 0},
		{"[WARN] memberlist: Was able to connect to y over TCP but UDP probes failed, network may be misconfigured", 1},
		{"", 0},
		{"no level", 0},
	} {
		out.Reset()
		l.Print(row.line)
		if got := strings.Count(out.String(), "\n"); got != row.seen {
			t.Errorf("%q made %d lines, want %d: %s", row.line, got, row.seen, out.String())
		}
	}
}
