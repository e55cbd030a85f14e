package mesh

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/hashicorp/memberlist"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh/ring"
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

func FuzzParseRange(f *testing.F) {
	for _, s := range []string{"", "bytes=0-", "bytes=17-", "bytes=-1", "bytes=1-2", "bytes=2-1", "bytes=3-9223372036854775807", "bytes=99999999999999999999-", "x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		off, end, err := parseRange(s)
		if err == nil && (off < 0 || end < 0 || end > 0 && end <= off || off > 0 && !strings.HasPrefix(s, "bytes=")) {
			t.Fatalf("%q is from %d to %d", s, off, end)
		}
	})
}

func FuzzBlobSize(f *testing.F) {
	f.Add(206, "bytes 5-9/10", int64(5), int64(5), int64(0))
	f.Add(206, "bytes 5-9/10", int64(5), int64(5), int64(100))
	f.Add(206, "bytes 5-7/10", int64(3), int64(5), int64(8))
	f.Add(206, "bytes 5-9/*", int64(-1), int64(5), int64(0))
	f.Add(200, "", int64(10), int64(0), int64(0))
	f.Fuzz(func(t *testing.T, status int, contentRange string, length, off, end int64) {
		if off < 0 || end < 0 || end > 0 && end <= off {
			return
		}
		resp := &http.Response{StatusCode: status, ContentLength: length, Header: http.Header{"Content-Range": {contentRange}}}
		size, err := blobSize(resp, question{off: off, end: end})
		if err == nil && (size < 0 || off > 0 && size <= off) {
			t.Fatalf("%q from %d on is of a blob of %d bytes", contentRange, off, size)
		}
	})
}

type oneMember struct{ id string }

func (m oneMember) Ring() *ring.Ring { return ring.New([]ring.Node{{ID: m.id}}, 1) }
func (oneMember) Down(string) bool   { return false }

func (oneMember) Changed() <-chan struct{} { return nil }

// FuzzUploadID: what a client writes as an id never becomes a host or a path
// but those of a member's uploads.
func FuzzUploadID(f *testing.F) {
	const member = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
	for _, s := range []string{"", ".", "..", "a." + member, "../../x." + member, "a.b." + member, member, "a." + member + "/", "%2e." + member, "a.localhost"} {
		f.Add(s)
	}
	b := &Blobs{id: "here", members: oneMember{member}}
	f.Fuzz(func(t *testing.T, id string) {
		h, err := b.homeOf(oci.Upload{ID: id})
		if err != nil {
			return
		}
		u, err := url.Parse("https://" + h.node + "/uploads/" + url.PathEscape(h.ID))
		if err != nil || !h.here && u.Host != member || path.Dir(path.Clean(u.Path)) != "/uploads" {
			t.Fatalf("%q leads to %v, %v", id, u, err)
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
