package mesh_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
)

func start(t *testing.T, p *peer) oci.Upload {
	t.Helper()
	id, err := p.blobs.Start(t.Context(), "library/app", digest.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	return oci.Upload{Repo: "library/app", ID: id}
}

// TestUploadOverThreeNodes: every request reaches another node than the last.
func TestUploadOverThreeNodes(t *testing.T) {
	c := newCluster(t, option{replicas: 3}, "a", "a", "a")
	a, b, e := c.nodes[0], c.nodes[1], c.nodes[2]
	content := bytesOf(1, 300_000)
	d := digest.FromBytes(content)
	u := start(t, a)
	if !strings.HasSuffix(u.ID, "."+a.id) {
		t.Fatalf("id %q does not name its home", u.ID)
	}
	for i, step := range []struct {
		at       *peer
		off      int64
		from, to int
	}{{b, 0, 0, 100_000}, {e, -1, 100_000, 200_000}, {a, 200_000, 200_000, 250_000}} {
		size, err := step.at.blobs.Append(t.Context(), u, step.off, bytes.NewReader(content[step.from:step.to]))
		if err != nil || size != int64(step.to) {
			t.Fatalf("step %d: size %d, %v", i, size, err)
		}
	}
	if size, err := e.blobs.Size(t.Context(), u); err != nil || size != 250_000 {
		t.Fatalf("size %d, %v", size, err)
	}
	if _, err := b.blobs.Append(t.Context(), u, 5, bytes.NewReader(content[:10])); !errors.Is(err, oci.ErrUploadOutOfOrder) {
		t.Errorf("out of order at another node: %v", err)
	}
	if _, err := e.blobs.Finish(t.Context(), u, 5, bytes.NewReader(content[:10]), d); !errors.Is(err, oci.ErrUploadOutOfOrder) {
		t.Errorf("finish out of order at another node: %v", err)
	}
	// Finished, and again at every node: the first answer may have been lost.
	for _, p := range []*peer{b, e, a, b} {
		size, err := p.blobs.Finish(t.Context(), u, 250_000, bytes.NewReader(content[250_000:]), d)
		if err != nil || size != 300_000 {
			t.Fatalf("finish at %s: size %d, %v", p.id, size, err)
		}
	}
	other := digest.FromString("another")
	if _, err := b.blobs.Finish(t.Context(), u, -1, nil, other); !errors.Is(err, oci.ErrUploadUnknown) {
		t.Errorf("a finished upload turned into another blob: %v", err)
	}
	until(t, "three copies", func() bool { return len(c.holders(d)) == 3 })
	if n := b.blobs.Stats().UploadsForwarded; n != 5 {
		t.Errorf("%d requests were passed on, want 5", n)
	}
}

func TestFinishWithoutBody(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "a")
	content := bytesOf(1, 1000)
	for _, r := range []io.Reader{nil, http.NoBody, strings.NewReader("")} {
		u := start(t, c.nodes[0])
		if _, err := c.nodes[1].blobs.Append(t.Context(), u, 0, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		if size, err := c.nodes[1].blobs.Finish(t.Context(), u, -1, r, digest.FromBytes(content)); err != nil || size != 1000 {
			t.Fatalf("size %d, %v", size, err)
		}
	}
}

// TestUploadErrorsCross: what the home says is what the client hears.
func TestUploadErrorsCross(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "a")
	home, entry := c.nodes[0], c.nodes[1].blobs
	u := start(t, home)
	local, _, _ := strings.Cut(u.ID, ".")
	d := digest.FromString("x")
	for _, row := range []struct {
		name string
		u    oci.Upload
		want error
	}{
		{"other repository", oci.Upload{Repo: "library/other", ID: u.ID}, oci.ErrUploadUnknown},
		{"no home", oci.Upload{Repo: u.Repo, ID: local}, oci.ErrUploadUnknown},
		{"no member", oci.Upload{Repo: u.Repo, ID: local + "." + uuid(77)}, oci.ErrUploadUnknown},
		{"a host of the client's choice", oci.Upload{Repo: u.Repo, ID: local + ".example.com/x?"}, oci.ErrUploadUnknown},
		{"a path of the client's choice", oci.Upload{Repo: u.Repo, ID: "../blobs/" + d.String() + "." + home.id}, oci.ErrUploadUnknown},
		{"dots", oci.Upload{Repo: u.Repo, ID: ".." + "." + home.id}, oci.ErrUploadUnknown},
		{"empty", oci.Upload{}, oci.ErrUploadUnknown},
		{"nothing but a home", oci.Upload{Repo: u.Repo, ID: "." + home.id}, oci.ErrUploadUnknown},
	} {
		t.Run(row.name, func(t *testing.T) {
			if _, err := entry.Append(t.Context(), row.u, -1, strings.NewReader("x")); !errors.Is(err, row.want) {
				t.Errorf("append: %v", err)
			}
			if _, err := entry.Size(t.Context(), row.u); !errors.Is(err, row.want) {
				t.Errorf("size: %v", err)
			}
			if _, err := entry.Finish(t.Context(), row.u, -1, nil, d); !errors.Is(err, row.want) {
				t.Errorf("finish: %v", err)
			}
			if err := entry.Cancel(t.Context(), row.u); !errors.Is(err, row.want) {
				t.Errorf("cancel: %v", err)
			}
		})
	}
	if _, err := entry.Finish(t.Context(), u, -1, strings.NewReader("y"), d); !errors.Is(err, oci.ErrDigestInvalid) {
		t.Errorf("other bytes: %v", err)
	}
	if _, err := entry.Size(t.Context(), u); !errors.Is(err, oci.ErrUploadUnknown) {
		t.Errorf("after a mismatch: %v", err)
	}
	u = start(t, home)
	if err := entry.Cancel(t.Context(), u); err != nil {
		t.Error(err)
	}
	if _, err := home.blobs.Size(t.Context(), u); !errors.Is(err, oci.ErrUploadUnknown) {
		t.Errorf("after cancel: %v", err)
	}
}

// TestClientVanishes: the client's body ends early behind the entry node. The
// home keeps what came, and the fault is the client's.
func TestClientVanishes(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "a")
	home, entry := c.nodes[0], c.nodes[1]
	u := start(t, home)
	content := bytesOf(1, 200_000)
	d := digest.FromBytes(content)

	broken := io.MultiReader(bytes.NewReader(content[:100_000]), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, err := entry.blobs.Append(t.Context(), u, 0, broken); !errors.Is(err, oci.ErrUploadInvalid) {
		t.Fatalf("error %v", err)
	}
	size := settled(t, entry, u)
	if size > 100_000 {
		t.Fatalf("%d bytes of 100,000", size)
	}

	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	result := make(chan error, 1)
	go func() {
		_, err := entry.blobs.Append(ctx, u, size, r)
		result <- err
	}()
	if _, err := w.Write(content[size : size+1]); err != nil {
		t.Fatal(err)
	}
	cancel() // as the server does when the connection breaks: both end
	_ = w.CloseWithError(io.ErrUnexpectedEOF)
	if err := <-result; !errors.Is(err, oci.ErrUploadInvalid) {
		t.Fatalf("error %v", err)
	}
	size = settled(t, entry, u)
	if got, err := entry.blobs.Finish(t.Context(), u, size, bytes.NewReader(content[size:]), d); err != nil || got != 200_000 {
		t.Fatalf("size %d, %v", got, err)
	}
}

// settled returns the size of u once the home has noticed that the last
// request ended.
func settled(t *testing.T, p *peer, u oci.Upload) (size int64) {
	t.Helper()
	until(t, "the session is free", func() bool {
		var err error
		size, err = p.blobs.Append(t.Context(), u, -1, strings.NewReader(""))
		return err == nil
	})
	return size
}

// TestHomeDies: seen down, the upload is gone; not reached, it may not be.
func TestHomeDies(t *testing.T) {
	for _, row := range []struct {
		name  string
		spoil func(c *cluster, home *peer)
		want  error
	}{
		{"seen down", func(c *cluster, home *peer) { c.setDown(home, true) }, oci.ErrUploadUnknown},
		{"not reached", func(_ *cluster, home *peer) { home.kill() }, oci.ErrUnavailable},
		{"does not answer", func(_ *cluster, home *peer) { home.lost.Store(true) }, oci.ErrUnavailable},
		{"dies on the way", func(_ *cluster, home *peer) {
			home.setTamper(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
				_, _ = io.ReadFull(r.Body, make([]byte, 10))
				panic(http.ErrAbortHandler)
			})
		}, oci.ErrUnavailable},
		{"goes down before it answers", func(c *cluster, home *peer) {
			home.setTamper(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
				_, _ = io.Copy(io.Discard, r.Body)
				c.setDown(home, true)
				<-r.Context().Done()
			})
		}, oci.ErrUnavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newCluster(t, option{replicas: 1, patience: mesh.Patience{Answer: 300 * time.Millisecond, Stall: 300 * time.Millisecond}}, "a", "a")
			u := start(t, c.nodes[0])
			row.spoil(c, c.nodes[0])
			entry := c.nodes[1].blobs
			if _, err := entry.Append(t.Context(), u, -1, bytes.NewReader(bytesOf(1, 1<<20))); !errors.Is(err, row.want) {
				t.Errorf("append: %v", err)
			}
			c.setDown(c.nodes[0], row.name == "seen down")
			if _, err := entry.Size(t.Context(), u); !errors.Is(err, row.want) {
				t.Errorf("size: %v", err)
			}
			c.setDown(c.nodes[0], row.name == "seen down")
			if _, err := entry.Finish(t.Context(), u, -1, nil, digest.FromString("")); !errors.Is(err, row.want) {
				t.Errorf("finish: %v", err)
			}
		})
	}
}

// TestFinishRetriesPlacing: the upload is finished but its copies are too few;
// the same request again goes on from there.
func TestFinishRetriesPlacing(t *testing.T) {
	c := newCluster(t, option{replicas: 2}, "a", "a", "-a")
	home, owner, entry := c.nodes[0], c.nodes[1], c.nodes[2]
	u := start(t, home)
	content := bytesOf(1, 1000)
	d := digest.FromBytes(content)
	c.setDown(owner, true)
	if _, err := entry.blobs.Finish(t.Context(), u, 0, bytes.NewReader(content), d); !errors.Is(err, oci.ErrUnavailable) {
		t.Fatalf("error %v", err)
	}
	c.setDown(owner, false)
	if size, err := entry.blobs.Finish(t.Context(), u, 0, bytes.NewReader(content), d); err != nil || size != 1000 {
		t.Fatalf("size %d, %v", size, err)
	}
	if !owner.holds(d) {
		t.Error("answered with one copy")
	}
}

// TestSlowHomeIsWaitedFor: placing takes longer than any answer may, and the
// home is up.
func TestSlowHomeIsWaitedFor(t *testing.T) {
	c := newCluster(t, option{replicas: 1, patience: mesh.Patience{Answer: 20 * time.Millisecond, Stall: 30 * time.Millisecond}}, "a", "a")
	home, entry := c.nodes[0], c.nodes[1]
	for _, body := range []io.Reader{nil, strings.NewReader("")} {
		u := start(t, home)
		home.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodPut {
				_, _ = io.Copy(io.Discard, r.Body)
				before := c.looks.Load()
				until(t, "the entry node looks for the home several times", func() bool { return c.looks.Load() > before+5 })
			}
			next.ServeHTTP(w, r)
		})
		if _, err := entry.blobs.Finish(t.Context(), u, -1, body, digest.FromString("")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKeptConnectionsBreak: a connection that the transport kept is gone by
// the next request, which is no reason to fail a client.
func TestKeptConnectionsBreak(t *testing.T) {
	c := newCluster(t, option{replicas: 2}, "a", "a")
	home, entry := c.nodes[0], c.nodes[1]
	u := start(t, home)
	content := bytesOf(1, 1000)
	for i := range 20 {
		if size, err := entry.blobs.Append(t.Context(), u, -1, bytes.NewReader(content[50*i:50*i+50])); err != nil || size != int64(50*i+50) {
			t.Fatalf("size %d, %v", size, err)
		}
		home.srv.CloseClientConnections()
	}
	for i := range uint64(5) {
		if err := entry.push(t.Context(), bytesOf(i, 1000)); err != nil {
			t.Fatal(err)
		}
		home.srv.CloseClientConnections()
	}
}

// TestHalfSentIsNotRepeated: when a kept connection breaks with part of a chunk
// sent, the rest alone must not be sent as if it were the whole.
func TestHalfSentIsNotRepeated(t *testing.T) {
	c := newCluster(t, option{replicas: 1, expect: 10 * time.Millisecond}, "a", "a")
	home, entry := c.nodes[0], c.nodes[1]
	u := start(t, home)
	if _, err := entry.blobs.Size(t.Context(), u); err != nil { // opens the connection
		t.Fatal(err)
	}
	var times atomic.Int64
	home.setTamper(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		times.Add(1)
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.ReadFull(buffered, make([]byte, 10)) // sent without permission, which took too long
		_ = conn.(*tls.Conn).NetConn().(*net.TCPConn).SetLinger(0)
		_ = conn.Close() // a reset, which the transport may take for an old connection's end
	})
	_, err := entry.blobs.Append(t.Context(), u, 0, bytes.NewReader(bytesOf(1, 1000)))
	if !errors.Is(err, oci.ErrUnavailable) || times.Load() != 1 {
		t.Errorf("error %v after %d requests", err, times.Load())
	}
}
