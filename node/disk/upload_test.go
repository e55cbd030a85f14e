package disk

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// start opens an upload in "repo".
func start(t *testing.T, s *Store, alg digest.Algorithm) oci.Upload {
	t.Helper()
	id, err := s.Start(t.Context(), "repo", alg)
	if err != nil {
		t.Fatal(err)
	}
	return oci.Upload{Repo: "repo", ID: id}
}

// add appends b at off and fails the test unless the upload then holds size.
func add(t *testing.T, s *Store, u oci.Upload, off int64, b []byte, size int64) {
	t.Helper()
	got, err := s.Append(t.Context(), u, off, bytes.NewReader(b))
	if err != nil || got != size {
		t.Fatalf("Append = %d, %v; want %d", got, err, size)
	}
	wantSize(t, s, u, size)
}

func wantSize(t *testing.T, s *Store, u oci.Upload, size int64) {
	t.Helper()
	if got, err := s.Size(t.Context(), u); err != nil || got != size {
		t.Fatalf("Size = %d, %v; want %d", got, err, size)
	}
}

func TestUpload(t *testing.T) {
	b, d := content(largeBuffer + 12345)
	n := int64(len(b))
	for _, tt := range []struct {
		name   string
		alg    digest.Algorithm // at Start
		digest digest.Digest
		chunks []int64 // where each Append ends; the rest comes with Finish
	}{
		{"in one piece", digest.SHA256, d, nil},
		{"finished with nothing", digest.SHA256, d, []int64{n}},
		{"chunks", digest.SHA256, d, []int64{1, 1, 70_000, n - 1}},
		{"default algorithm", "", d, []int64{1000}},
		{"sha512", digest.SHA512, digest.SHA512.FromBytes(b), []int64{1000, 2000}},
		{"sha512 asked of sha256", digest.SHA256, digest.SHA512.FromBytes(b), []int64{1000}},
		{"sha256 asked of sha512", digest.SHA512, d, []int64{1000}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, Config{})
			u := start(t, s, tt.alg)
			wantSize(t, s, u, 0)
			at := int64(0)
			for _, end := range tt.chunks {
				add(t, s, u, at, b[at:end], end)
				at = end
			}
			size, err := s.Finish(t.Context(), u, at, bytes.NewReader(b[at:]), tt.digest)
			if err != nil || size != n {
				t.Fatalf("Finish = %d, %v", size, err)
			}
			wantBlob(t, s, tt.digest, b)
			wantFiles(t, s, 2) // the blob and the mark
			if open := s.Stats().UploadsOpen; open != 0 {
				t.Errorf("%d uploads open", open)
			}
		})
	}
}

func TestUploadEmpty(t *testing.T) {
	s := newStore(t, Config{})
	u := start(t, s, digest.SHA256)
	if size, err := s.Finish(t.Context(), u, 0, nil, digest.FromString("")); err != nil || size != 0 {
		t.Fatalf("Finish = %d, %v", size, err)
	}
	wantBlob(t, s, digest.FromString(""), []byte{})
}

func TestUploadOutOfOrder(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(1000)
	u := start(t, s, digest.SHA256)
	add(t, s, u, 0, b[:500], 500)
	for _, off := range []int64{0, 499, 501, 1 << 40} {
		_, err := s.Append(t.Context(), u, off, bytes.NewReader(b[500:]))
		wantErr(t, err, oci.ErrUploadOutOfOrder)
		_, err = s.Finish(t.Context(), u, off, bytes.NewReader(b[500:]), d)
		wantErr(t, err, oci.ErrUploadOutOfOrder)
		wantSize(t, s, u, 500)
	}
	add(t, s, u, -1, b[500:600], 600)
	if _, err := s.Finish(t.Context(), u, -1, bytes.NewReader(b[600:]), d); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, b)
}

func TestUploadOfOtherContentIsGone(t *testing.T) {
	s := newStore(t, Config{})
	b, _ := content(1000)
	_, other := content(1001)
	u := start(t, s, digest.SHA256)
	_, err := s.Finish(t.Context(), u, 0, bytes.NewReader(b), other)
	wantErr(t, err, oci.ErrDigestInvalid)
	_, err = s.Size(t.Context(), u)
	wantErr(t, err, oci.ErrUploadUnknown)
	wantFiles(t, s, 0)
	if open := s.Stats().UploadsOpen; open != 0 {
		t.Errorf("%d uploads open", open)
	}
}

// A digest that cannot be is the request's mistake; the upload lives on.
func TestFinishWithBadDigest(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(1000)
	u := start(t, s, digest.SHA256)
	for _, bad := range []digest.Digest{"", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		_, err := s.Finish(t.Context(), u, 0, bytes.NewReader(b), bad)
		wantErr(t, err, oci.ErrDigestInvalid)
	}
	if _, err := s.Finish(t.Context(), u, 0, bytes.NewReader(b), d); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, b)
}

// What arrived before a client went away stays, in a chunk and at the end.
func TestUploadResumesAfterBrokenBody(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(3 * largeBuffer)
	u := start(t, s, digest.SHA256)
	_, err := s.Append(t.Context(), u, 0, brokenBody(b[:largeBuffer+1]))
	wantErr(t, err, oci.ErrUploadInvalid)
	wantErr(t, err, errBody)
	wantSize(t, s, u, largeBuffer+1)
	_, err = s.Finish(t.Context(), u, largeBuffer+1, brokenBody(b[largeBuffer+1:2*largeBuffer]), d)
	wantErr(t, err, oci.ErrUploadInvalid)
	wantSize(t, s, u, 2*largeBuffer)
	if _, err := s.Finish(t.Context(), u, 2*largeBuffer, bytes.NewReader(b[2*largeBuffer:]), d); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, b)
}

// A piece that the disk did not take has been hashed all the same: the upload
// goes on with the hash of what is in its file.
func TestUploadResumesAfterFailedWrite(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(3 * largeBuffer)
	u := start(t, s, digest.SHA256)
	up, err := s.acquire(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.resume(t.Context(), up, 0)
	if err != nil {
		t.Fatal(err)
	}
	sabotage := readerFunc(func([]byte) (int, error) {
		_ = w.file.Close()
		return 0, io.EOF
	})
	body := io.MultiReader(bytes.NewReader(b[:largeBuffer]), sabotage, bytes.NewReader(b[largeBuffer:]))
	err = s.keep(up, s.receive(t.Context(), up, w, body))
	s.release(up)
	wantErr(t, err, os.ErrClosed)
	size, err := s.Size(t.Context(), u)
	if err != nil || size == 0 || size > largeBuffer {
		t.Fatalf("Size = %d, %v", size, err)
	}
	if _, err := s.Finish(t.Context(), u, size, bytes.NewReader(b[size:]), d); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, b)
}

func TestUploadsByTwoAtOnce(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(1000)
	u := start(t, s, digest.SHA256)
	r, w := io.Pipe()
	first := make(chan error, 1)
	go func() {
		_, err := s.Append(t.Context(), u, 0, r)
		first <- err
	}()
	if _, err := w.Write(b[:500]); err != nil { // taken: the first has the session
		t.Fatal(err)
	}
	_, err := s.Append(t.Context(), u, -1, bytes.NewReader(b))
	wantErr(t, err, oci.ErrUploadInvalid)
	_, err = s.Finish(t.Context(), u, -1, nil, d)
	wantErr(t, err, oci.ErrUploadInvalid)
	wantErr(t, s.Cancel(t.Context(), u), oci.ErrUploadInvalid)
	_ = w.Close()
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	wantSize(t, s, u, 500)
}

func TestUploadUnknown(t *testing.T) {
	s := newStore(t, Config{})
	_, d := content(10)
	u := start(t, s, digest.SHA256)
	for _, tt := range []struct {
		name string
		u    oci.Upload
	}{
		{"other repository", oci.Upload{Repo: "other", ID: u.ID}},
		{"no repository", oci.Upload{ID: u.ID}},
		{"other id", oci.Upload{Repo: "repo", ID: randomID()}},
		{"no id", oci.Upload{Repo: "repo"}},
		{"upper case", oci.Upload{Repo: "repo", ID: strings.ToUpper(u.ID[:35]) + "A"}},
		{"a path", oci.Upload{Repo: "repo", ID: "../uploads/" + u.ID}},
		{"its record", oci.Upload{Repo: "repo", ID: u.ID + recordSuffix}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := s.Size(t.Context(), tt.u)
			wantErr(t, err, oci.ErrUploadUnknown)
			_, err = s.Append(t.Context(), tt.u, 0, strings.NewReader("x"))
			wantErr(t, err, oci.ErrUploadUnknown)
			_, err = s.Finish(t.Context(), tt.u, 0, nil, d)
			wantErr(t, err, oci.ErrUploadUnknown)
			wantErr(t, s.Cancel(t.Context(), tt.u), oci.ErrUploadUnknown)
		})
	}
	_, err := s.Start(t.Context(), "repo", "sha384")
	wantErr(t, err, oci.ErrDigestInvalid)
	wantSize(t, s, u, 0)
}

func TestCancel(t *testing.T) {
	s := newStore(t, Config{})
	u := start(t, s, digest.SHA256)
	add(t, s, u, 0, []byte("some"), 4)
	if err := s.Cancel(t.Context(), u); err != nil {
		t.Fatal(err)
	}
	_, err := s.Size(t.Context(), u)
	wantErr(t, err, oci.ErrUploadUnknown)
	wantFiles(t, s, 0)
}

// The answer to a finished upload can be had again by its client, for what it
// finished, and by nobody else.
func TestFinishedMark(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, Config{Dir: dir})
	b, d := content(1000)
	_, held := content(2000)
	if err := s.Put(t.Context(), held, -1, bytes.NewReader(first(content(2000)))); err != nil {
		t.Fatal(err)
	}
	u := start(t, s, digest.SHA256)
	if _, err := s.Finish(t.Context(), u, 0, bytes.NewReader(b), d); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"before a restart", "after it"} {
		t.Run(when, func(t *testing.T) {
			size, err := s.Finish(t.Context(), u, 0, bytes.NewReader(b), d)
			if err != nil || size != 1000 {
				t.Fatalf("repeated Finish = %d, %v", size, err)
			}
			_, err = s.Finish(t.Context(), u, 0, nil, held)
			wantErr(t, err, oci.ErrUploadUnknown)
			_, err = s.Finish(t.Context(), oci.Upload{Repo: "other", ID: u.ID}, 0, nil, d)
			wantErr(t, err, oci.ErrUploadUnknown)
			_, err = s.Append(t.Context(), u, -1, nil)
			wantErr(t, err, oci.ErrUploadUnknown)
			_, err = s.Size(t.Context(), u)
			wantErr(t, err, oci.ErrUploadUnknown)
			wantErr(t, s.Cancel(t.Context(), u), oci.ErrUploadUnknown)
		})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = newStore(t, Config{Dir: dir})
	}
}

func first[A, B any](a A, _ B) A { return a }

func TestTooManyUploads(t *testing.T) {
	s := newStore(t, Config{MaxUploads: 3})
	b, d := content(10)
	var us []oci.Upload
	for range 3 {
		us = append(us, start(t, s, digest.SHA256))
	}
	_, err := s.Start(t.Context(), "repo", digest.SHA256)
	wantErr(t, err, oci.ErrTooManyRequests)
	if _, err := s.Finish(t.Context(), us[0], 0, bytes.NewReader(b), d); err != nil {
		t.Fatal(err)
	}
	start(t, s, digest.SHA256)
	if err := s.Cancel(t.Context(), us[1]); err != nil {
		t.Fatal(err)
	}
	start(t, s, digest.SHA256)
	_, err = s.Start(t.Context(), "repo", digest.SHA256)
	wantErr(t, err, oci.ErrTooManyRequests)
}

// Marks are as many as uploads may be; the oldest go first.
func TestTooManyMarks(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, Config{Dir: dir, MaxUploads: 2})
	b, d := content(10)
	var us []oci.Upload
	for range 4 {
		u := start(t, s, digest.SHA256)
		us = append(us, u)
		if _, err := s.Finish(t.Context(), u, 0, bytes.NewReader(b), d); err != nil {
			t.Fatal(err)
		}
	}
	for i, u := range us {
		_, err := s.Finish(t.Context(), u, 0, bytes.NewReader(b), d)
		if i < 2 {
			wantErr(t, err, oci.ErrUploadUnknown)
		} else if err != nil {
			t.Errorf("mark %d: %v", i, err)
		}
	}
	wantFiles(t, s, 3)
}

// Uploads that nobody works on cost neither descriptors nor goroutines.
func TestIdleUploadsHoldNoDescriptors(t *testing.T) {
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("no /proc here: ", err)
		}
		return len(entries)
	}
	s := newStore(t, Config{})
	before := descriptors()
	for i := range 2000 {
		u := start(t, s, digest.SHA256)
		if i%2 == 0 {
			add(t, s, u, 0, []byte("x"), 1)
		}
	}
	if now := descriptors(); now > before {
		t.Fatalf("%d descriptors, %d before", now, before)
	}
}

func TestSweep(t *testing.T) {
	const ttl = time.Hour
	s := newStore(t, Config{UploadTTL: ttl})
	b, d := content(10)
	idle := start(t, s, digest.SHA256)
	add(t, s, idle, 0, b, 10)
	marked := start(t, s, digest.SHA256)
	if _, err := s.Finish(t.Context(), marked, 0, bytes.NewReader(b), d); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{s.fillsDir + "put-left", s.uploadsDir + randomID()} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, w := io.Pipe()
	busy := start(t, s, digest.SHA256)
	appended := make(chan error, 1)
	go func() {
		_, err := s.Append(t.Context(), busy, 0, r)
		appended <- err
	}()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if n := s.Sweep(time.Now()); n != 0 {
		t.Fatalf("%d fresh ones swept", n)
	}
	wantFiles(t, s, 8)
	if n := s.Sweep(time.Now().Add(2 * ttl)); n != 2 {
		t.Fatalf("%d swept, want 2", n)
	}
	_, err := s.Size(t.Context(), idle)
	wantErr(t, err, oci.ErrUploadUnknown)
	_, err = s.Finish(t.Context(), marked, 0, nil, d)
	wantErr(t, err, oci.ErrUploadUnknown)
	_ = w.Close()
	if err := <-appended; err != nil {
		t.Fatal(err)
	}
	wantSize(t, s, busy, 10)
	wantFiles(t, s, 3) // the blob, the busy upload and its record
}

// TestEmptySessionsGoSooner: a session that never got a byte is cheap to open
// and holds nothing, so thousands of them do not stay for a day.
func TestEmptySessionsGoSooner(t *testing.T) {
	s := newStore(t, Config{MaxUploads: 2})
	empty, begun := start(t, s, digest.SHA256), start(t, s, digest.SHA256)
	if _, err := s.Append(t.Context(), begun, 0, strings.NewReader("x")); err != nil {
		t.Fatal(err)
	}
	_, err := s.Start(t.Context(), "r", digest.SHA256)
	wantErr(t, err, oci.ErrTooManyRequests)
	if n := s.Sweep(time.Now().Add(2 * emptyTTL)); n != 1 {
		t.Fatalf("%d swept, want the empty one", n)
	}
	_, err = s.Size(t.Context(), empty)
	wantErr(t, err, oci.ErrUploadUnknown)
	wantSize(t, s, begun, 1)
	start(t, s, digest.SHA256)
}
