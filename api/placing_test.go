package api_test

import (
	"context"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
	"github.com/flotilla-registry/flotilla/node/disk"
)

// sleepyStore is a disk under whose user something happens once bytes are
// placed and before they are named.
type sleepyStore struct {
	*disk.Store
	placed func(d digest.Digest)
}

func (s *sleepyStore) Put(ctx context.Context, d digest.Digest, size int64, r io.Reader) error {
	err := s.Store.Put(ctx, d, size, r)
	s.placed(d)
	return err
}

func (s *sleepyStore) Finish(ctx context.Context, u oci.Upload, off int64, r io.Reader, d digest.Digest) (int64, error) {
	size, err := s.Store.Finish(ctx, u, off, r, d)
	s.placed(d)
	return size, err
}

func (s *sleepyStore) Renew(ctx context.Context, d digest.Digest) error {
	err := s.Store.Renew(ctx, d)
	s.placed(d)
	return err
}

// TestLateNames: a push that sleeps for a day between its bytes and their name
// never names bytes that were collected meanwhile. It goes through where they
// are still there, else when it is tried again.
func TestLateNames(t *testing.T) {
	const day = 25 * time.Hour
	store, err := disk.Open(disk.Config{Dir: filepath.Join(t.TempDir(), "bytes")})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	sleepy := &sleepyStore{Store: store}
	n := newNode(t, func(cfg *api.Config, _ *metadata.Cluster) { cfg.Blobs, cfg.Uploads = sleepy, sleepy })
	collect := func(d digest.Digest) {
		if gone, err := store.Remove(d, time.Now().Add(time.Hour)); !gone || err != nil {
			t.Errorf("the collection leaves %s: %v", d, err)
		}
	}

	content := func(name string) string { return "content of " + name }
	post := func(name string) reply {
		d := digest.FromString(content(name)).String()
		return n.do(t, "POST", "/v2/r/blobs/uploads/?digest="+d, nil, content(name))
	}
	session := func(name string) reply {
		d := digest.FromString(content(name)).String()
		at := n.do(t, "POST", "/v2/r/blobs/uploads/", nil, nil).want(t, 202, nil).header.Get("Location")
		return n.do(t, "PUT", at+"?digest="+d, nil, content(name))
	}
	large := func(name string) string {
		return `{"schemaVersion":2,"mediaType":"` + oci.TypeIndex + `","manifests":[],"annotations":{"x":"` + name + strings.Repeat("x", 300<<10) + `"}}`
	}
	index := func(name string) reply {
		return n.do(t, "PUT", "/v2/r/manifests/"+digest.FromString(large(name)).String(), head{"Content-Type": oci.TypeIndex}, large(name))
	}
	blobPath := func(name string) string { return "/v2/r/blobs/" + digest.FromString(content(name)).String() }
	indexPath := func(name string) string { return "/v2/r/manifests/" + digest.FromString(large(name)).String() }

	const twice, always = 2, 1 << 10
	for _, row := range []struct {
		name   string
		push   func(name string) reply
		path   func(name string) string
		quiet  bool // nothing was written for two days before
		sleeps int  // how many placings in a row take a day
		gone   bool // the bytes go in the first of them
		status int
		code   string
	}{
		{"a blob of one request, at once", post, blobPath, false, 0, false, 201, ""},
		{"a blob of one request, in a quiet mesh", post, blobPath, true, 0, false, 201, ""},
		{"a blob of one request, slept over", post, blobPath, false, 1, false, 201, ""},
		{"a blob of one request, slept over twice", post, blobPath, false, twice, false, 201, ""},
		{"a blob of one request, collected", post, blobPath, false, 1, true, 503, "UNAVAILABLE"},
		{"a blob of one request, for ever asleep", post, blobPath, false, always, false, 503, "UNAVAILABLE"},
		{"an upload, at once", session, blobPath, false, 0, false, 201, ""},
		{"an upload, in a quiet mesh", session, blobPath, true, 0, false, 201, ""},
		{"an upload, slept over", session, blobPath, false, 1, false, 201, ""},
		{"an upload, collected", session, blobPath, false, 1, true, 404, "BLOB_UPLOAD_UNKNOWN"},
		{"an upload, for ever asleep", session, blobPath, false, always, false, 503, "UNAVAILABLE"},
		{"a large manifest, at once", index, indexPath, false, 0, false, 201, ""},
		{"a large manifest, in a quiet mesh", index, indexPath, true, 0, false, 201, ""},
		{"a large manifest, slept over", index, indexPath, false, 1, false, 201, ""},
		{"a large manifest, collected: it is at hand", index, indexPath, false, 1, true, 201, ""},
		{"a large manifest, for ever asleep", index, indexPath, false, always, false, 503, "UNAVAILABLE"},
	} {
		t.Run(row.name, func(t *testing.T) {
			left := row.sleeps
			sleepy.placed = func(d digest.Digest) {
				if row.gone && left == row.sleeps {
					collect(d)
				}
				if left > 0 {
					left--
					n.skew.Add(int64(day))
				}
			}
			if row.quiet {
				n.skew.Add(int64(2 * day))
			}
			got := row.push(row.name)
			if row.status == 201 {
				got.want(t, 201, nil)
			} else {
				got.refused(t, row.status, row.code)
				n.do(t, "HEAD", row.path(row.name), nil, nil).want(t, 404, nil)
				n.do(t, "GET", row.path(row.name), nil, nil).want(t, 404, nil)
				if row.status == 503 && got.header.Get("Retry-After") == "" {
					t.Error("no Retry-After")
				}
				sleepy.placed = func(digest.Digest) {}
				row.push(row.name).want(t, 201, nil)
			}
			n.do(t, "HEAD", row.path(row.name), nil, nil).want(t, 200, nil)
			n.do(t, "GET", row.path(row.name), nil, nil).want(t, 200, nil)
		})
	}
}
