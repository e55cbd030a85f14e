package api_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/metadata"
)

// BenchmarkSmall is what the requests that clients make most cost here, from
// the router to the log line, without net/http around it.
func BenchmarkSmall(b *testing.B) {
	n := newNode(b, func(cfg *api.Config, _ *metadata.Cluster) {
		cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
		cfg.Observe = func(api.Served) {}
	})
	manifest := n.pushImage(b, "library/app", "app", "v1")
	blob := n.pushBlob(b, "library/app", "layer")
	for _, row := range []struct{ name, method, path string }{
		{"manifest GET by tag", "GET", "/v2/library/app/manifests/v1"},
		{"manifest HEAD by tag", "HEAD", "/v2/library/app/manifests/v1"},
		{"manifest GET by digest", "GET", "/v2/library/app/manifests/" + manifest.String()},
		{"blob HEAD", "HEAD", "/v2/library/app/blobs/" + blob.String()},
		{"blob GET", "GET", "/v2/library/app/blobs/" + blob.String()},
		{"tags", "GET", "/v2/library/app/tags/list"},
	} {
		b.Run(row.name, func(b *testing.B) {
			r := httptest.NewRequest(row.method, row.path, http.NoBody)
			w := &nowhere{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				n.handler.ServeHTTP(w, r)
			}
			if w.status != http.StatusOK {
				b.Fatal(w.status)
			}
		})
	}
}

// nowhere is a connection's http.ResponseWriter without the connection.
type nowhere struct {
	header http.Header
	status int
}

func (w *nowhere) Header() http.Header              { return w.header }
func (w *nowhere) WriteHeader(status int)           { w.status = status }
func (w *nowhere) Write(p []byte) (int, error)      { return len(p), nil }
func (w *nowhere) SetReadDeadline(time.Time) error  { return nil }
func (w *nowhere) SetWriteDeadline(time.Time) error { return nil }

// BenchmarkWho is what it costs to find out who pulls a manifest: nobody in a
// mesh without accounts, nobody where anybody may pull, an account with a token,
// and one with its password each time.
func BenchmarkWho(b *testing.B) {
	quiet := func(cfg *api.Config, _ *metadata.Cluster) {
		cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
		cfg.Observe = func(api.Served) {}
	}
	open := newNode(b, quiet)
	open.pushImage(b, "public/app", "app", "v1")
	closed, _ := guarded(b)
	closed.stock(b, "public/app", "v1")
	d, revision, err := closed.auth.Document()
	if err != nil {
		b.Fatal(err)
	}
	d.Limits = auth.Limits{AccountRequests: 1e6, AddressRequests: 1e6}
	if _, err := closed.auth.Apply(b.Context(), "bench", d, revision); err != nil {
		b.Fatal(err)
	}
	token := closed.token(b, alice, "repository:public/app:pull")
	for _, row := range []struct {
		name string
		n    *node
		show head
	}{
		{"no accounts", open, nil},
		{"anonymous", closed, nil},
		{"token", closed, token},
		{"password", closed, as(alice)},
	} {
		b.Run(row.name, func(b *testing.B) {
			r := httptest.NewRequest("GET", "/v2/public/app/manifests/v1", http.NoBody)
			for k, v := range row.show {
				r.Header.Set(k, v)
			}
			w := &nowhere{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				clear(w.header)
				row.n.handler.ServeHTTP(w, r)
			}
			if w.status != http.StatusOK {
				b.Fatal(w.status)
			}
		})
	}
}
