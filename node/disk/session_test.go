package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// restarts are the ways in which a Store can come back.
var restarts = []struct {
	name string
	boot string
	then func(t *testing.T, dir, id string) // between the two lives
	size int64                              // of 1000 that were acknowledged; below zero: the upload is lost
	kept bool                               // the running hash was
}{
	{"of the process", "boot-1", nil, 1000, true},
	{"of the process, amid a chunk", "boot-1", appendGarbage, 1000, true},
	{"of the machine", "boot-2", nil, 1000, false},
	{"of the machine, with bytes lost", "boot-2", truncateTo(300), 300, false},
	{"of the machine, with unrecorded bytes", "boot-2", appendGarbage, 1000, false},
	{"of a machine without a boot id", "", nil, 1000, false},
	{"with the bytes gone", "boot-2", func(t *testing.T, dir, id string) { must(t, os.Remove(dir+"/uploads/"+id)) }, -1, false},
	{"with the record gone", "boot-2", func(t *testing.T, dir, id string) { must(t, os.Remove(dir+"/uploads/"+id+recordSuffix)) }, -1, false},
	{"with the record empty", "boot-2", rewriteRecord(""), -1, false},
	{"with the record broken", "boot-2", rewriteRecord(`{"repo":"repo","size":-5,"algorithm":"sha256"}`), -1, false},
	{"with a record of the future", "boot-1", rewriteRecord(`{"repo":"repo","size":1000,"algorithm":"sha1024"}`), -1, false},
	{"with a hash that cannot be", "boot-1", rewriteRecord(`{"repo":"repo","size":1000,"algorithm":"sha256","boot":"boot-1","hash":"AAAA"}`), 1000, false},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func appendGarbage(t *testing.T, dir, id string) {
	f, err := os.OpenFile(dir+"/uploads/"+id, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.Write(make([]byte, 5000)) // more than will come over it
	must(t, errors.Join(err, f.Close()))
}

func truncateTo(size int64) func(t *testing.T, dir, id string) {
	return func(t *testing.T, dir, id string) { must(t, os.Truncate(dir+"/uploads/"+id, size)) }
}

func rewriteRecord(s string) func(t *testing.T, dir, id string) {
	return func(t *testing.T, dir, id string) {
		must(t, os.WriteFile(dir+"/uploads/"+id+recordSuffix, []byte(s), 0o600))
	}
}

func TestRestartAmidUpload(t *testing.T) {
	b, d := content(2000)
	for _, tt := range restarts {
		for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
			t.Run(fmt.Sprint(tt.name, ", ", alg), func(t *testing.T) {
				if alg == digest.SHA512 {
					d = digest.SHA512.FromBytes(b)
				}
				dir := t.TempDir()
				before := newStore(t, Config{Dir: dir, sys: system{bootID: func() string { return "boot-1" }}})
				u := start(t, before, alg)
				add(t, before, u, 0, b[:1000], 1000)
				must(t, before.Close())
				if tt.then != nil {
					tt.then(t, dir, u.ID)
				}
				s := newStore(t, Config{Dir: dir, sys: system{bootID: func() string { return tt.boot }}})
				if tt.size < 0 {
					_, err := s.Size(t.Context(), u)
					wantErr(t, err, oci.ErrUploadUnknown)
					wantFiles(t, s, 0)
					return
				}
				wantSize(t, s, u, tt.size)
				if kept := s.ups.byID[u.ID].hash != nil; kept != tt.kept {
					t.Errorf("running hash kept: %v", kept)
				}
				add(t, s, u, tt.size, b[tt.size:1500], 1500)
				_, err := s.Finish(t.Context(), u, 1500, bytes.NewReader(b[1500:]), d)
				must(t, err)
				wantBlob(t, s, d, b)
			})
		}
	}
}

// An upload of before a reboot is read again; a client that gives up
// meanwhile leaves it as it is.
func TestRehashCancelled(t *testing.T) {
	dir := t.TempDir()
	before := newStore(t, Config{Dir: dir, sys: system{bootID: func() string { return "boot-1" }}})
	b, d := content(1000)
	u := start(t, before, digest.SHA256)
	add(t, before, u, 0, b, 1000)
	must(t, before.Close())
	s := newStore(t, Config{Dir: dir, sys: system{bootID: func() string { return "boot-2" }}})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Finish(gone, u, 1000, nil, d)
	wantErr(t, err, context.Canceled)
	wantSize(t, s, u, 1000)
	_, err = s.Finish(t.Context(), u, 1000, nil, d)
	must(t, err)
	wantBlob(t, s, d, b)
}
