package disk

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Quarantine keeps the newest files, so many and so many bytes, but always the
// last one.
func TestQuarantineIsBounded(t *testing.T) {
	const size = maxQuarantinedBytes / 4
	for _, tt := range []struct {
		name  string
		there []int64 // sizes, oldest first
		kept  int     // of the newest, with the one that comes
	}{
		{"empty", nil, 1},
		{"room for one", make([]int64, maxQuarantined-1), maxQuarantined},
		{"many", make([]int64, maxQuarantined+7), maxQuarantined},
		{"as large as may be", []int64{size, size, size, size - 11}, 5},
		{"too large", []int64{size, size, size, size}, 4},
		{"one larger than all that may be", []int64{0, 2 * maxQuarantinedBytes}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.Mkdir(filepath.Join(dir, "quarantine"), 0o700))
			var names []string
			for i, size := range tt.there {
				path := filepath.Join(dir, "quarantine", fmt.Sprint("sha256-", i))
				must(t, os.WriteFile(path, nil, 0o600))
				must(t, os.Truncate(path, size)) // takes no space
				old := time.Now().Add(time.Duration(i-1000) * time.Minute)
				must(t, os.Chtimes(path, old, old))
				names = append(names, filepath.Base(path))
			}
			s := newStore(t, Config{Dir: dir})
			b, d := content(11)
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
			s.damage(t, d)
			s.lastUsed(t, d, time.Now().Add(-1e6*time.Minute)) // the order is not that of use
			wantErr(t, s.Check(t.Context(), d), errWrongBytes)
			names = append(names, "sha256-"+d.Encoded())
			var kept []string
			entries, err := os.ReadDir(s.quarantine)
			must(t, err)
			for _, e := range entries {
				kept = append(kept, e.Name())
			}
			want := names[len(names)-tt.kept:]
			slices.Sort(want)
			if !slices.Equal(kept, want) || s.Stats().Quarantined != int64(tt.kept) {
				t.Errorf("kept %d, counted %d, want the newest %d", len(kept), s.Stats().Quarantined, tt.kept)
			}
			must(t, s.Close())
			if n := newStore(t, Config{Dir: dir}).Stats().Quarantined; n != int64(tt.kept) {
				t.Errorf("counted %d after a restart", n)
			}
		})
	}
}

// The largest single file stays, whatever its size.
func TestQuarantineKeepsTheLast(t *testing.T) {
	s := newStore(t, Config{})
	b, d := content(10)
	must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
	path, _ := s.path(d)
	kept := s.quarantine + "sha256-" + d.Encoded()
	must(t, os.Rename(path, kept))
	must(t, os.Truncate(kept, 3*maxQuarantinedBytes))
	s.trimQuarantine()
	if n := s.Stats().Quarantined; n != 1 {
		t.Errorf("%d files kept", n)
	}
}

// A damaged file is not served on, whatever stands in the way of keeping it.
func TestQuarantineFails(t *testing.T) {
	errDisk := errors.New("read-only file system")
	for _, tt := range []struct {
		name  string
		sys   func(path string) system
		fatal bool
	}{
		{"cannot be kept", func(string) system {
			return system{rename: func(root, from, to string) error {
				if filepath.Base(filepath.Dir(to)) == "quarantine" {
					return errDisk
				}
				return rename(root, from, to)
			}}
		}, false},
		{"cannot be taken away", func(path string) system {
			return system{rename: func(root, from, to string) error {
				if filepath.Base(filepath.Dir(to)) == "quarantine" {
					return errors.Join(errDisk, os.Remove(path), os.MkdirAll(filepath.Join(path, "in the way"), 0o700))
				}
				return rename(root, from, to)
			}}
		}, true},
		{"may be back after a power cut", func(path string) system {
			syncs := 0
			return system{syncFolder: func(folder string) error {
				if folder == filepath.Dir(path) {
					if syncs++; syncs == 2 { // the first is of the commit
						return errDisk
					}
				}
				return nil
			}}
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, d := content(1000)
			dir := t.TempDir()
			path := filepath.Join(dir, "blobs", "sha256", d.Encoded()[:2], d.Encoded())
			fatal := []error{}
			told := []digest.Digest{}
			s := newStore(t, Config{
				Dir: dir, sys: tt.sys(path),
				Fatal: func(err error) { fatal = append(fatal, err) },
				Bad:   func(d digest.Digest) { told = append(told, d) },
			})
			must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
			s.damage(t, d)
			wantErr(t, s.Check(t.Context(), d), errWrongBytes)
			if s.Has(d) {
				t.Error("still vouched for")
			}
			if (len(fatal) == 1) != tt.fatal || (len(told) == 1) == tt.fatal {
				t.Errorf("fatal: %v, told %q", fatal, told)
			}
			if !tt.fatal {
				_, _, err := s.Open(t.Context(), d)
				wantErr(t, err, oci.ErrBlobUnknown)
				must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
			}
		})
	}
}

// Once found, a damaged blob stays out: the folder that named it is synced
// after it was moved.
func TestQuarantineIsDurable(t *testing.T) {
	b, d := content(1000)
	s := newStore(t, Config{})
	must(t, s.Put(t.Context(), d, -1, bytes.NewReader(b)))
	s.damage(t, d)
	path, _ := s.path(d)
	var synced []bool // whether the name was gone by then
	s.folders.syncFolder = func(folder string) error {
		_, err := os.Stat(path)
		synced = append(synced, folder == filepath.Dir(path) && errors.Is(err, os.ErrNotExist))
		return nil
	}
	wantErr(t, s.Check(t.Context(), d), errWrongBytes)
	if !slices.Equal(synced, []bool{true}) {
		t.Errorf("synced %v", synced)
	}
}
