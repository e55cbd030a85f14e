package disk

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

const recordSuffix = ".json"

// recordSize is the fixed size of a session's record, so that it is rewritten
// in place by one call: a killed process leaves the old one or the new one. It
// holds the longest repository name and the state of sha512.
const recordSize = 1024

// record is what outlives the process of a session: JSON, padded with spaces.
// It is not synced. After a power cut it may be old, missing or broken, and the
// file beside it shorter than it says; then the upload goes on from what is
// there, or is lost and its client starts again. The digest that the client
// names at the end decides in any case.
type record struct {
	Repo      string           `json:"repo"`
	Algorithm digest.Algorithm `json:"algorithm"`
	Size      int64            `json:"size"`
	Hash      []byte           `json:"hash,omitempty"` // marshalled by the standard library
	Boot      string           `json:"boot,omitempty"`
	Done      digest.Digest    `json:"done,omitempty"`
}

func (s *Store) recordPath(up *upload) string { return s.uploadsDir + up.id + recordSuffix }

// record writes the state of up, which the caller holds, beside its bytes.
func (s *Store) record(up *upload) error {
	rec := record{Repo: up.repo, Algorithm: up.algorithm, Size: up.size.Load(), Boot: s.boot, Done: up.done}
	if m, ok := up.hash.(encoding.BinaryMarshaler); ok {
		state, err := m.MarshalBinary()
		if err != nil {
			return oci.ErrUnavailable.Wrap(err)
		}
		rec.Hash = state
	}
	b, err := json.Marshal(rec)
	if err != nil {
		return oci.ErrUnavailable.Wrap(err)
	}
	if len(b) > recordSize {
		return oci.ErrNameInvalid.Because("too long")
	}
	b = append(b, bytes.Repeat([]byte{' '}, recordSize-len(b))...)
	s.sys.step("record upload")
	f, err := openFile(s.recordPath(up), os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return asFull(err)
	}
	_, err = f.WriteAt(b, 0)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return asFull(err)
	}
	return nil
}

// loadUploads takes up the sessions of an earlier process, and removes bytes
// without a session.
func (s *Store) loadUploads() error {
	s.ups.byID = map[string]*upload{}
	s.boot = s.sys.bootID()
	entries, err := os.ReadDir(s.uploadsDir)
	if err != nil {
		return err
	}
	var marks []*upload
	for _, e := range entries {
		id, isRecord := strings.CutSuffix(e.Name(), recordSuffix)
		if !isRecord || !isID(id) {
			continue
		}
		up, err := s.loadUpload(id)
		if err != nil {
			s.log.Warn("upload lost with the last process", "id", id, "error", err)
			_ = os.Remove(s.uploadsDir + e.Name())
			continue
		}
		s.ups.byID[id] = up
		if up.done != "" {
			marks = append(marks, up)
		} else {
			s.ups.open++
		}
	}
	slices.SortFunc(marks, func(a, b *upload) int { return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.id, b.id)) })
	for _, up := range marks {
		s.ups.marks = append(s.ups.marks, up.id)
	}
	for _, e := range entries {
		if isID(e.Name()) && s.ups.byID[e.Name()] == nil {
			_ = os.Remove(s.uploadsDir + e.Name())
		}
	}
	return nil
}

// loadUpload rebuilds one session. The bytes that a request had written beyond
// the last record are cut off, as their hash is lost.
func (s *Store) loadUpload(id string) (*upload, error) {
	name := s.uploadsDir + id
	rec, used, err := readRecord(name + recordSuffix)
	if err != nil {
		return nil, err
	}
	up := &upload{id: id, repo: rec.Repo, algorithm: rec.Algorithm, used: used, done: rec.Done}
	up.size.Store(rec.Size)
	if up.done != "" {
		return up, nil
	}
	h, err := newHash(rec.Algorithm)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && rec.Size == 0:
		up.hash = h
		return up, nil
	case err != nil:
		return nil, err
	case info.Size() > rec.Size:
		if err := os.Truncate(name, rec.Size); err != nil {
			return nil, err
		}
	case info.Size() < rec.Size:
		up.size.Store(info.Size())
		return up, nil
	}
	if s.boot != "" && rec.Boot == s.boot && h.(encoding.BinaryUnmarshaler).UnmarshalBinary(rec.Hash) == nil {
		up.hash = h
	}
	return up, nil
}

func readRecord(path string) (rec record, used time.Time, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return rec, used, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, used, err
	}
	if rec.Size < 0 {
		return rec, used, fmt.Errorf("negative size in %s", path)
	}
	info, err := os.Stat(path)
	if err != nil {
		return rec, used, err
	}
	return rec, info.ModTime(), nil
}

// bootID names this run of the operating system: as long as it stays, what was
// written is in the page cache at least. "" where the system has no such name.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// emptyTTL is UploadTTL for a session that never got a byte: anybody can open
// thousands of them in a second, and there is nothing in them to come back for.
const emptyTTL = 10 * time.Minute

// Sweep drops the uploads and marks that nobody has used for UploadTTL before
// now, or emptyTTL, and files that no one will come back to. It returns how many uploads
// and marks went.
func (s *Store) Sweep(now time.Time) (expired int) {
	deadline := now.Add(-s.cfg.UploadTTL)
	for _, up := range s.ups.expire(deadline, now.Add(-min(emptyTTL, s.cfg.UploadTTL))) {
		s.drop(up)
		s.release(up)
		s.stats.uploadsExpired.Add(1)
		expired++
	}
	// Whatever still grows has been written to since; see SourceSilence and
	// the deadlines of those who call Put.
	s.sweepFolder(s.fillsDir, deadline, func(string) bool { return true })
	s.sweepFolder(s.uploadsDir, deadline, func(name string) bool {
		s.ups.mu.Lock()
		defer s.ups.mu.Unlock()
		return s.ups.byID[strings.TrimSuffix(name, recordSuffix)] == nil
	})
	return expired
}

// expire acquires every idle session last used before deadline, and of those
// without a byte, which cost a client nothing to open, each that was last used
// before emptyDeadline.
func (u *uploads) expire(deadline, emptyDeadline time.Time) (old []*upload) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, up := range u.byID {
		empty := up.size.Load() == 0 && up.done == ""
		if up.busy == nil && (up.used.Before(deadline) || empty && up.used.Before(emptyDeadline)) {
			up.busy = make(chan struct{})
			old = append(old, up)
		}
	}
	return old
}

func (s *Store) sweepFolder(dir string, deadline time.Time, abandoned func(name string) bool) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.log.Warn("cannot sweep", "error", err)
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.ModTime().Before(deadline) && abandoned(e.Name()) {
			_ = os.Remove(dir + e.Name())
		}
	}
}
