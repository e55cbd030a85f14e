package disk

import (
	"bytes"
	"context"
	"io"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// A file system that is really full says so in the middle of a write.
func TestNoSpaceLeft(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skip("cannot mount a small file system: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s := newStore(t, Config{Dir: dir})
	// The store does not see it coming, as when others write beside it.
	s.sys.space = func(string) (uint64, uint64, error) { return 1 << 40, 1 << 40, nil }
	_, other := content(10)
	wantErr(t, s.Put(t.Context(), other, -1, zeros(9*mib)), oci.ErrDiskFull)
	u := start(t, s, digest.SHA256)
	_, err := s.Append(t.Context(), u, 0, zeros(9*mib))
	wantErr(t, err, oci.ErrDiskFull)
	must(t, wantGone(t, s, u))
	r, _, err := s.Fill(t.Context(), other, func(context.Context, int64) (io.ReadCloser, int64, error) {
		return io.NopCloser(zeros(9 * mib)), 9 * mib, nil
	})
	if err == nil {
		_, err = io.Copy(io.Discard, r)
		_ = r.Close()
	}
	wantErr(t, err, oci.ErrDiskFull)
	eventually(t, "the failed fill is gone", func() bool { return len(files(t, s)) == 0 })
	b, d := content(mib)
	must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
	wantBlob(t, s, d, b)
}
