package node

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/node/disk"
)

// byteStore is what api asks of whatever keeps bytes.
type byteStore interface {
	api.Blobs
	api.Uploads
}

// TestBytes is one suite for one disk and for all disks of a mesh: api cannot
// tell them apart. Each step of a row asks the next store, which for the disk
// is always the same one.
func TestBytes(t *testing.T) {
	t.Run("one disk", func(t *testing.T) {
		s, err := disk.Open(disk.Config{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		testBytes(t, func() byteStore { return s })
	})
	t.Run("a mesh of three", func(t *testing.T) {
		c := newCluster(t, 3)
		turn := 0
		testBytes(t, func() byteStore { turn++; return c.nodes[turn%3].blobs })
	})
}

func random(n int) ([]byte, digest.Digest) {
	b := make([]byte, n)
	rand.Read(b)
	return b, digest.FromBytes(b)
}

func testBytes(t *testing.T, next func() byteStore) {
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(t *testing.T, err, kind error) {
		t.Helper()
		if !errors.Is(err, kind) {
			t.Fatalf("error %v, want %v", err, kind)
		}
	}
	absent := func(t *testing.T, d digest.Digest) {
		t.Helper()
		r, _, err := next().Open(t.Context(), d)
		if err == nil {
			r.Close()
		}
		want(t, err, oci.ErrBlobUnknown)
	}
	holds := func(t *testing.T, d digest.Digest, blob []byte) {
		t.Helper()
		r, size, err := next().Open(t.Context(), d)
		must(t, err)
		defer r.Close()
		got, err := io.ReadAll(r)
		must(t, err)
		if size != int64(len(blob)) || !bytes.Equal(got, blob) {
			t.Fatalf("%d bytes of size %d, want %d", len(got), size, len(blob))
		}
	}
	start := func(t *testing.T, repo string) oci.Upload {
		t.Helper()
		id, err := next().Start(t.Context(), repo, digest.SHA256)
		must(t, err)
		return oci.Upload{Repo: repo, ID: id}
	}
	appendTo := func(t *testing.T, u oci.Upload, off int64, b []byte, size int64) {
		t.Helper()
		got, err := next().Append(t.Context(), u, off, bytes.NewReader(b))
		must(t, err)
		if got != size {
			t.Fatalf("size %d, want %d", got, size)
		}
	}

	for _, row := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"a blob put is a blob held", func(t *testing.T) {
			for _, size := range []int{0, 1, 4096, 1 << 20} {
				blob, d := random(size)
				must(t, next().Put(t.Context(), d, int64(size), bytes.NewReader(blob)))
				holds(t, d, blob)
			}
		}},
		{"what was put is renewed, and nothing else", func(t *testing.T) {
			blob, d := random(1000)
			s := next()
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(blob)))
			must(t, s.Renew(t.Context(), d))
			holds(t, d, blob)
			_, d = random(10)
			want(t, s.Renew(t.Context(), d), oci.ErrOverdue)
		}},
		{"a blob of sha512", func(t *testing.T) {
			blob, _ := random(1000)
			d := digest.SHA512.FromBytes(blob)
			must(t, next().Put(t.Context(), d, -1, bytes.NewReader(blob)))
			holds(t, d, blob)
		}},
		{"bytes of another digest stay out", func(t *testing.T) {
			_, d := random(10)
			want(t, next().Put(t.Context(), d, -1, strings.NewReader("other")), oci.ErrDigestInvalid)
			absent(t, d)
		}},
		{"fewer bytes than announced stay out", func(t *testing.T) {
			blob, d := random(10)
			want(t, next().Put(t.Context(), d, 11, bytes.NewReader(blob)), oci.ErrSizeInvalid)
			absent(t, d)
		}},
		{"an unsupported digest", func(t *testing.T) {
			want(t, next().Put(t.Context(), "md5:d41d8cd98f00b204e9800998ecf8427e", 0, strings.NewReader("")), oci.ErrDigestInvalid)
		}},
		{"an upload in one piece", func(t *testing.T) {
			blob, d := random(300 << 10)
			u := start(t, "app")
			size, err := next().Finish(t.Context(), u, -1, bytes.NewReader(blob), d)
			must(t, err)
			if size != int64(len(blob)) {
				t.Fatalf("size %d", size)
			}
			holds(t, d, blob)
		}},
		{"an upload in chunks", func(t *testing.T) {
			blob, d := random(30)
			u := start(t, "app")
			appendTo(t, u, 0, blob[:10], 10)
			appendTo(t, u, -1, blob[10:15], 15)
			appendTo(t, u, 15, blob[15:20], 20)
			if size, err := next().Size(t.Context(), u); err != nil || size != 20 {
				t.Fatalf("size %d, %v", size, err)
			}
			_, err := next().Finish(t.Context(), u, 20, bytes.NewReader(blob[20:]), d)
			must(t, err)
			holds(t, d, blob)
		}},
		{"a chunk out of order changes nothing", func(t *testing.T) {
			blob, d := random(20)
			u := start(t, "app")
			appendTo(t, u, 0, blob[:10], 10)
			for _, off := range []int64{0, 9, 11} {
				_, err := next().Append(t.Context(), u, off, bytes.NewReader(blob[10:]))
				want(t, err, oci.ErrUploadOutOfOrder)
			}
			_, err := next().Finish(t.Context(), u, 5, bytes.NewReader(blob[10:]), d)
			want(t, err, oci.ErrUploadOutOfOrder)
			_, err = next().Finish(t.Context(), u, 10, bytes.NewReader(blob[10:]), d)
			must(t, err)
			holds(t, d, blob)
		}},
		{"a body that breaks leaves what came", func(t *testing.T) {
			blob, d := random(200 << 10)
			u := start(t, "app")
			broken := io.MultiReader(bytes.NewReader(blob[:100<<10]), iotest.ErrReader(errors.New("the client is gone")))
			_, err := next().Append(t.Context(), u, 0, broken)
			want(t, err, oci.ErrUploadInvalid)
			size, err := next().Size(t.Context(), u)
			must(t, err)
			if size > 100<<10 {
				t.Fatalf("%d bytes, more than came", size)
			}
			_, err = next().Finish(t.Context(), u, size, bytes.NewReader(blob[size:]), d)
			must(t, err)
			holds(t, d, blob)
		}},
		{"a wrong digest ends the upload", func(t *testing.T) {
			blob, _ := random(10)
			_, d := random(10)
			u := start(t, "app")
			_, err := next().Finish(t.Context(), u, -1, bytes.NewReader(blob), d)
			want(t, err, oci.ErrDigestInvalid)
			absent(t, d)
			_, err = next().Size(t.Context(), u)
			want(t, err, oci.ErrUploadUnknown)
		}},
		{"the last step may be repeated, by its own repository and digest alone", func(t *testing.T) {
			blob, d := random(10)
			u := start(t, "app")
			for range 2 {
				_, err := next().Finish(t.Context(), u, -1, bytes.NewReader(blob), d)
				must(t, err)
			}
			_, err := next().Finish(t.Context(), oci.Upload{Repo: "other", ID: u.ID}, -1, bytes.NewReader(blob), d)
			want(t, err, oci.ErrUploadUnknown)
			_, other := random(10)
			_, err = next().Finish(t.Context(), u, -1, bytes.NewReader(blob), other)
			want(t, err, oci.ErrUploadUnknown)
		}},
		{"an upload of another repository is unknown", func(t *testing.T) {
			u := oci.Upload{Repo: "other", ID: start(t, "app").ID}
			_, err := next().Size(t.Context(), u)
			want(t, err, oci.ErrUploadUnknown)
			_, err = next().Append(t.Context(), u, 0, strings.NewReader("x"))
			want(t, err, oci.ErrUploadUnknown)
			want(t, next().Cancel(t.Context(), u), oci.ErrUploadUnknown)
		}},
		{"a cancelled upload is gone", func(t *testing.T) {
			u := start(t, "app")
			must(t, next().Cancel(t.Context(), u))
			_, err := next().Size(t.Context(), u)
			want(t, err, oci.ErrUploadUnknown)
			want(t, next().Cancel(t.Context(), u), oci.ErrUploadUnknown)
		}},
		{"ids that were never given out", func(t *testing.T) {
			for _, id := range []string{"", ".", "..", "../../etc/passwd", "a.b", newUUID(), newUUID() + "." + newUUID(), strings.Repeat("a", 10_000)} {
				_, err := next().Size(t.Context(), oci.Upload{Repo: "app", ID: id})
				if !errors.Is(err, oci.ErrUploadUnknown) {
					t.Errorf("id %.60q: error %v", id, err)
				}
			}
		}},
		{"reads may seek", func(t *testing.T) {
			blob, d := random(100 << 10)
			must(t, next().Put(t.Context(), d, -1, bytes.NewReader(blob)))
			r, _, err := next().Open(t.Context(), d)
			must(t, err)
			defer r.Close()
			for _, off := range []int64{99 << 10, 0, 50 << 10} {
				if _, err := r.Seek(off, io.SeekStart); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 1024)
				if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, blob[off:off+1024]) {
					t.Fatal(fmt.Sprintf("at %d: other bytes", off), err)
				}
			}
		}},
	} {
		t.Run(row.name, row.run)
	}
}
