package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

var errBody = errors.New("the client went away")

// brokenBody yields b and then fails.
func brokenBody(b []byte) io.Reader {
	return io.MultiReader(bytes.NewReader(b), errReader{errBody})
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestPut(t *testing.T) {
	small, smallDigest := content(1000)
	large, largeDigest := content(3*largeBuffer + 77)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name   string
		ctx    context.Context
		digest digest.Digest
		size   int64
		body   io.Reader
		want   []byte // stored
		err    error
	}{
		{name: "known size", digest: smallDigest, size: 1000, body: bytes.NewReader(small), want: small},
		{name: "unknown size", digest: smallDigest, size: -1, body: bytes.NewReader(small), want: small},
		{name: "large", digest: largeDigest, size: -1, body: bytes.NewReader(large), want: large},
		{name: "byte by byte", digest: smallDigest, size: 1000, body: oneByte{bytes.NewReader(small)}, want: small},
		{name: "empty", digest: digest.FromString(""), size: 0, body: strings.NewReader(""), want: []byte{}},
		{name: "sha512", digest: digest.SHA512.FromBytes(large), size: int64(len(large)), body: bytes.NewReader(large), want: large},
		{name: "other content", digest: largeDigest, size: -1, body: bytes.NewReader(small), err: oci.ErrDigestInvalid},
		{name: "too short", digest: smallDigest, size: 1000, body: bytes.NewReader(small[:999]), err: oci.ErrSizeInvalid},
		{name: "too long", digest: smallDigest, size: 1000, body: bytes.NewReader(large), err: oci.ErrSizeInvalid},
		{name: "body fails", digest: smallDigest, size: 1000, body: brokenBody(small[:500]), err: errBody},
		{name: "body fails at its end", digest: smallDigest, size: -1, body: brokenBody(small), err: oci.ErrUploadInvalid},
		{name: "cancelled", ctx: cancelled, digest: smallDigest, size: 1000, body: bytes.NewReader(small), err: context.Canceled},
		{name: "no digest", digest: "", size: -1, body: bytes.NewReader(small), err: oci.ErrDigestInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, Config{})
			ctx := tt.ctx
			if ctx == nil {
				ctx = t.Context()
			}
			err := s.Put(ctx, tt.digest, tt.size, tt.body)
			if tt.err != nil {
				wantErr(t, err, tt.err)
				wantFiles(t, s, 0)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantBlob(t, s, tt.digest, tt.want)
			wantFiles(t, s, 1)
		})
	}
}

type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:min(1, len(p))]) }

// A blob that is held is no reason to believe a caller who shows other bytes.
func TestPutOfHeldBlobIsVerified(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(5000)
	for range 2 {
		if err := s.Put(t.Context(), d, 5000, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, s.Put(t.Context(), d, -1, strings.NewReader("something else")), oci.ErrDigestInvalid)
	wantBlob(t, s, d, b)
	wantFiles(t, s, 1)
}

func TestPutTogether(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(100_000)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.Put(t.Context(), d, -1, bytes.NewReader(b)); err != nil {
				t.Error(err)
			}
			if _, held := s.Touch(d); !held {
				t.Error("stored but not held")
			}
		})
	}
	wg.Wait()
	wantBlob(t, s, d, b)
	wantFiles(t, s, 1)
	if n := len(s.locks.inUse); n != 0 {
		t.Errorf("%d locks left", n)
	}
}

func TestOpenUnknown(t *testing.T) {
	s := newStore(t, Config{})
	_, d := content(10)
	_, _, err := s.Open(t.Context(), d)
	wantErr(t, err, oci.ErrBlobUnknown)
}

// What is there but cannot be read is not absent.
func TestOpenUnreadableIsNotUnknown(t *testing.T) {
	s := newStore(t, Config{})
	_, d := content(10)
	path, err := s.path(d)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Dir(path), nil, 0o600); err != nil { // ENOTDIR below it
		t.Fatal(err)
	}
	_, _, err = s.Open(t.Context(), d)
	wantErr(t, err, oci.ErrUnavailable)
}

// A hit must be a file that net/http can hand to sendfile.
func TestOpenIsBareFile(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(10)
	if err := s.Put(t.Context(), d, -1, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	r, _, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, bare := r.(*os.File); !bare {
		t.Fatalf("Open returns %T", r)
	}
}

func TestTouch(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(1234)
	if _, held := s.Touch(d); held {
		t.Fatal("held before it was put")
	}
	if err := s.Put(t.Context(), d, -1, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	path, _ := s.path(d)
	long := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(path, long, long); err != nil {
		t.Fatal(err)
	}
	if size, held := s.Touch(d); !held || size != 1234 {
		t.Fatalf("Touch = %d, %v", size, held)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if age := time.Since(info.ModTime()); age > time.Hour {
		t.Fatalf("last used %v ago", age)
	}
}

func TestPath(t *testing.T) {
	hex := strings.Repeat("a1", 32)
	for _, tt := range []struct {
		name, digest, want string
	}{
		{"sha256", "sha256:" + hex, "blobs/sha256/a1/" + hex},
		{"sha512", "sha512:" + hex + hex, "blobs/sha512/a1/" + hex + hex},
		{"empty", "", ""},
		{"no algorithm", hex, ""},
		{"other algorithm", "sha384:" + strings.Repeat("a1", 48), ""},
		{"upper case", "sha256:" + strings.ToUpper(hex), ""},
		{"short", "sha256:" + hex[:63], ""},
		{"long", "sha256:" + hex + "a", ""},
		{"length of the other", "sha512:" + hex, ""},
		{"dots", "sha256:" + strings.Repeat("../", 21) + "a", ""},
		{"separator in algorithm", "../sha256:" + hex, ""},
		{"zero byte", "sha256:" + hex[:63] + "\x00", ""},
		{"second colon", "sha256:" + hex[:63] + ":", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, Config{})
			got, err := s.path(digest.Digest(tt.digest))
			if tt.want == "" {
				wantErr(t, err, oci.ErrDigestInvalid)
				return
			}
			if want := filepath.Join(s.cfg.Dir, filepath.FromSlash(tt.want)); err != nil || got != want {
				t.Fatalf("path = %q, %v; want %q", got, err, want)
			}
		})
	}
}

// FuzzNames: no digest and no id from the network names a file outside its
// folder, or two files.
func FuzzNames(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("a1", 32))
	f.Add("sha512:" + strings.Repeat("0f", 64))
	f.Add("sha256:../../../../etc/passwd")
	f.Add(randomID())
	s := newStore(f, Config{})
	f.Fuzz(func(t *testing.T, name string) {
		if path, err := s.path(digest.Digest(name)); err == nil {
			d := digest.Digest(name)
			rel, err := filepath.Rel(s.blobs, path)
			want := filepath.Join(d.Algorithm().String(), d.Encoded()[:2], d.Encoded())
			if err != nil || rel != want || d.Validate() != nil {
				t.Fatalf("%q is stored at %q", name, path)
			}
		}
		if isID(name) && (strings.Trim(name, "0123456789abcdef-") != "" || filepath.Base(name) != name) {
			t.Fatalf("id %q accepted", name)
		}
	})
}

func TestFolderHoldsNothingElse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b") // parents are made
	s := newStore(t, Config{Dir: dir})
	b, d := content(10)
	if err := s.Put(t.Context(), d, -1, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "blobs fills quarantine uploads" {
		t.Fatalf("folders: %s", got)
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	b, d := content(9999)
	first, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Put(t.Context(), d, -1, bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, first.Put(t.Context(), d, -1, bytes.NewReader(b)), oci.ErrUnavailable)
	if err := os.WriteFile(filepath.Join(dir, "fills", "put-left"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, Config{Dir: dir})
	wantBlob(t, s, d, b)
	wantFiles(t, s, 1)
}

func TestOpenNeedsAFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{file, filepath.Join(file, "below")} {
		if s, err := Open(Config{Dir: dir}); err == nil {
			_ = s.Close()
			t.Errorf("a store opened in %s", dir)
		}
	}
}
