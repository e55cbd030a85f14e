package disk

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Config says where a Store lives and how much it may take.
type Config struct {
	Dir     string // created where absent; belongs to one Store at a time
	Reserve int64  // bytes of the file system that are left to everything else

	MaxUploads    int           // open uploads, and finished marks, at once; 0 means 10,000
	MaxFills      int           // downloads at once; 0 means 1024
	UploadTTL     time.Duration // how long an idle upload or a finished mark lives; 0 means a day
	SourceSilence time.Duration // how long a source may send nothing; 0 means 5 s
	SessionWait   time.Duration // how long a request waits for another on the same upload; 0 means 3 s
	ScrubRate     int64         // bytes per second that Scrub reads; 0 means 8 MiB

	// Fatal, where set, is told once that the disk failed: a sync did, or it
	// hangs. It must return soon and must not call the Store, since it may be
	// called from within the write that met it.
	Fatal func(error)
	// Bad, where set, is told each blob that was held here until it was found
	// damaged, from within the Scrub or Check that found it.
	Bad func(digest.Digest)
	Log *slog.Logger // nil discards

	sys system // the zero value is the machine; tests of this package stand in for parts of it
}

// system is what a Store asks of the machine beyond plain file operations.
type system struct {
	syncFile   func(*os.File) error
	syncFolder func(path string) error
	rename     func(root, from, to string) error
	reader     func(*os.File) io.Reader // of stored bytes that are checked
	space      func(path string) (free, total uint64, err error)
	bootID     func() string
	step       func(name string) // told before each step of a commit or an upload's record
}

func (y system) orDefaults() system {
	if y.syncFile == nil {
		y.syncFile = (*os.File).Sync
	}
	if y.syncFolder == nil {
		y.syncFolder = syncFolder
	}
	if y.rename == nil {
		y.rename = rename
	}
	if y.reader == nil {
		y.reader = func(f *os.File) io.Reader { return f }
	}
	if y.space == nil {
		y.space = space
	}
	if y.bootID == nil {
		y.bootID = bootID
	}
	if y.step == nil {
		y.step = func(string) {}
	}
	return y
}

// Store is the bytes of one machine. Its methods may be called at once from
// any number of goroutines. Make one with Open.
type Store struct {
	cfg   Config
	sys   system
	log   *slog.Logger
	stats counters

	blobs, uploadsDir, fillsDir, quarantine string // folders, each ending in a separator

	boot string // of the running operating system

	watchdog watchdog
	unwatch  context.CancelFunc // ends its watch

	failed  atomic.Pointer[error] // how the disk failed, after which nothing is written
	closed  atomic.Bool
	account account // of the space that may be written
	buffers buffers
	locks   locks     // held from a blob's rename until it is durable, and while its use is marked
	folders folders   // shares folder syncs
	shards  sync.Map  // path of each shard folder known to be durable itself
	ups     uploads   // open uploads and finished marks
	fills   downloads // running fills

	trimming sync.Mutex // held while the quarantine is trimmed
}

// Open makes or reopens the Store in cfg.Dir. Uploads live on from before;
// what was left of fills is removed.
func Open(cfg Config) (*Store, error) {
	s := &Store{cfg: cfg, log: cfg.Log, buffers: newBuffers()}
	s.sys = s.watchdog.watched(cfg.sys.orDefaults())
	s.cfg.MaxUploads = orDefault(cfg.MaxUploads, 10_000)
	s.cfg.MaxFills = orDefault(cfg.MaxFills, 1024)
	s.cfg.UploadTTL = orDefault(cfg.UploadTTL, 24*time.Hour)
	s.cfg.SourceSilence = orDefault(cfg.SourceSilence, 5*time.Second)
	s.cfg.SessionWait = orDefault(cfg.SessionWait, 3*time.Second)
	s.cfg.ScrubRate = orDefault(cfg.ScrubRate, 8<<20)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s.cfg.Dir, s.cfg.Reserve = dir, max(cfg.Reserve, 0)
	sep := string(filepath.Separator)
	s.blobs, s.uploadsDir, s.fillsDir = dir+sep+"blobs"+sep, dir+sep+"uploads"+sep, dir+sep+"fills"+sep
	s.quarantine = dir + sep + "quarantine" + sep
	s.folders.syncFolder, s.folders.stats = s.sys.syncFolder, &s.stats
	s.fills.byDigest = map[digest.Digest]*fill{}
	if err := s.makeFolders(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	if err := clearFolder(s.fillsDir); err != nil {
		return nil, fmt.Errorf("open store: remove what was left of fills: %w", err)
	}
	if err := s.loadUploads(); err != nil {
		return nil, fmt.Errorf("open store: read uploads: %w", err)
	}
	s.trimQuarantine()
	s.startWatch()
	return s, nil
}

func orDefault[T ~int | ~int64](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// makeFolders creates what is missing and syncs the folders that name others:
// an earlier process may have been killed before it did.
func (s *Store) makeFolders() error {
	for _, dir := range []string{s.blobs + string(digest.SHA256), s.blobs + string(digest.SHA512), s.uploadsDir, s.fillsDir, s.quarantine} {
		if err := s.makeFolder(filepath.Clean(dir)); err != nil {
			return err
		}
	}
	for _, dir := range []string{s.cfg.Dir, s.blobs} {
		if err := s.sys.syncFolder(filepath.Clean(dir)); err != nil {
			return err
		}
	}
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		dir := s.blobs + string(alg)
		shards, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		if err := s.sys.syncFolder(dir); err != nil {
			return err
		}
		for _, e := range shards {
			s.shards.Store(dir+string(filepath.Separator)+e.Name(), true)
		}
	}
	return nil
}

// makeFolder creates path and its missing parents, each durable.
func (s *Store) makeFolder(path string) error {
	err := os.Mkdir(path, 0o700)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if err := s.makeFolder(filepath.Dir(path)); err != nil {
			return err
		}
		return s.makeFolder(path)
	case err != nil:
		return err
	}
	return s.sys.syncFolder(filepath.Dir(path))
}

func clearFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(dir + e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// Close refuses further writes, fails the running fills and returns when they
// are over; their readers learn of it but are their owners' to close. Open
// uploads stay on the disk for the next Open.
func (s *Store) Close() error {
	s.closed.Store(true)
	s.fills.stop()
	s.unwatch()
	s.watchdog.running.Wait()
	return nil
}

// path returns the file of d. It accepts only what a digest can be, so that no
// name from a client steers a path.
func (s *Store) path(d digest.Digest) (string, error) {
	alg, hex, _ := strings.Cut(string(d), ":")
	size := 0
	switch digest.Algorithm(alg) {
	case digest.SHA256:
		size = 2 * sha256.Size
	case digest.SHA512:
		size = 2 * sha512.Size
	}
	if size == 0 || len(hex) != size || !isHex(hex) {
		return "", oci.ErrDigestInvalid
	}
	const sep = string(filepath.Separator)
	return s.blobs + alg + sep + hex[:2] + sep + hex, nil
}

// isHex reports whether s is nothing but lower-case hexadecimal digits.
func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func newHash(a digest.Algorithm) (hash.Hash, error) {
	switch a {
	case digest.SHA256:
		return sha256.New(), nil
	case digest.SHA512:
		return sha512.New(), nil
	}
	return nil, oci.ErrDigestInvalid.Because("unsupported algorithm")
}

// Open returns the blob d as the bare file, so that it can be sent without a
// copy through this process, and its size.
func (s *Store) Open(_ context.Context, d digest.Digest) (io.ReadSeekCloser, int64, error) {
	path, err := s.path(d)
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	f, info, err := openBlob(path)
	if err != nil {
		return nil, 0, fmt.Errorf("open blob: %w", err)
	}
	markRead(path, info)
	s.stats.opened.Add(1)
	return f, info.Size(), nil
}

// open is Open for the Store's own needs, which mark nothing.
func (s *Store) open(d digest.Digest) (*os.File, int64, error) {
	path, err := s.path(d)
	if err != nil {
		return nil, 0, err
	}
	f, info, err := openBlob(path)
	if err != nil {
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func openBlob(path string) (*os.File, fs.FileInfo, error) {
	f, err := openFile(path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, oci.ErrBlobUnknown
	}
	if err != nil {
		// Out of descriptors, or a disk that fails: no proof of absence.
		return nil, nil, oci.ErrUnavailable.Wrap(err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, nil, oci.ErrUnavailable.Wrap(err)
	}
	if !info.Mode().IsRegular() { // put there by somebody else
		_ = f.Close()
		return nil, nil, oci.ErrBlobUnknown
	}
	return f, info, nil
}

// Touch marks d used now, where it is held durably, and says how large it is.
// A Store that failed vouches for nothing.
func (s *Store) Touch(d digest.Digest) (size int64, held bool) {
	path, err := s.path(d)
	if err != nil {
		return 0, false
	}
	// A commit of d holds the lock until the name is durable.
	unlock := s.locks.lock(d)
	defer unlock()
	info, err := s.durable(path)
	if err != nil {
		return 0, false
	}
	if err := os.Chtimes(path, time.Time{}, time.Now()); err != nil {
		return 0, false
	}
	return info.Size(), true
}

// Put stores the blob d read from r. A size below zero is not known; any other
// must be what r holds. The bytes are read and checked even where d is held:
// what a caller cannot show, it does not get.
func (s *Store) Put(ctx context.Context, d digest.Digest, size int64, r io.Reader) error {
	if err := s.put(ctx, d, size, r); err != nil {
		return fmt.Errorf("put blob: %w", err)
	}
	return nil
}

func (s *Store) put(ctx context.Context, d digest.Digest, size int64, r io.Reader) (err error) {
	if _, err := s.path(d); err != nil {
		return err
	}
	if err := s.writable(size); err != nil {
		return err
	}
	h, err := newHash(d.Algorithm())
	if err != nil {
		return err
	}
	f, err := s.temporary("put-")
	if err != nil {
		return err
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if size >= 0 {
		r = io.LimitReader(r, size+1) // one more byte than announced is enough to know
	}
	w := &inflow{file: f, hash: h}
	if err := s.pour(ctx, w, r); err != nil {
		return asUpload(err)
	}
	if size >= 0 && w.size != size {
		return oci.ErrSizeInvalid
	}
	if digest.NewDigest(d.Algorithm(), h) != d {
		return oci.ErrDigestInvalid.Because("the content has another digest")
	}
	return s.commit(f, d)
}

// temporary makes an empty file whose name nobody can guess, in the folder
// that the next Open empties.
func (s *Store) temporary(prefix string) (*os.File, error) {
	f, err := openFile(s.fillsDir+prefix+randomID(), os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return nil, asFull(err)
	}
	return f, nil
}
