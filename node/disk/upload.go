package disk

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// upload is one session: open until it is finished, then a mark. It holds no
// descriptor between requests.
type upload struct {
	id, repo  string
	algorithm digest.Algorithm // of hash, fixed at Start

	size atomic.Int64 // bytes received; grows while a request writes

	hash hash.Hash // of the first size bytes, nil: to be made from the file; owned by whom acquire gave the session

	// Guarded by uploads.mu.
	busy chan struct{} // not nil while a request has the session, and closed when it is done
	used time.Time
	done digest.Digest // set, once, by the session's owner: finished as this blob; only a repeated Finish has an answer
}

// uploads is every session by id.
type uploads struct {
	mu    sync.Mutex
	byID  map[string]*upload
	open  int      // those that are not marks
	marks []string // ids of marks, oldest first; may name some that have expired
}

// randomID returns 128 random bits in the layout of a UUID.
func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	h := hex.EncodeToString(b[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// isID reports whether id is one that randomID can have made. What comes from
// clients is checked by it before it becomes part of a path.
func isID(id string) bool {
	if len(id) != 36 || id[8] != '-' || id[13] != '-' || id[18] != '-' || id[23] != '-' {
		return false
	}
	h := id[:8] + id[9:13] + id[14:18] + id[19:23] + id[24:]
	return isHex(h)
}

// Start opens an upload in repo whose bytes are hashed by alg ("" means
// sha256) as they come.
func (s *Store) Start(_ context.Context, repo string, alg digest.Algorithm) (string, error) {
	up, err := s.start(repo, alg)
	if err != nil {
		return "", fmt.Errorf("start upload: %w", err)
	}
	return up.id, nil
}

func (s *Store) start(repo string, alg digest.Algorithm) (*upload, error) {
	if alg == "" {
		alg = digest.SHA256
	}
	h, err := newHash(alg)
	if err != nil {
		return nil, err
	}
	if err := s.writable(-1); err != nil {
		return nil, err
	}
	up := &upload{id: randomID(), repo: repo, algorithm: alg, hash: h, busy: make(chan struct{})}
	if err := s.ups.add(up, s.cfg.MaxUploads); err != nil {
		return nil, err
	}
	defer s.release(up)
	if err := s.record(up); err != nil {
		s.drop(up)
		return nil, err
	}
	s.stats.uploadsStarted.Add(1)
	return up, nil
}

func (u *uploads) add(up *upload, limit int) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open >= limit {
		return oci.ErrTooManyRequests.Because("too many open uploads")
	}
	u.open++
	u.byID[up.id] = up
	return nil
}

// acquire takes the session u for one request. Two requests that write to one
// upload are a client's mistake, or the same client back before the end of its
// broken connection was noticed here: the second waits a little for the first.
func (s *Store) acquire(ctx context.Context, u oci.Upload) (*upload, error) {
	if !isID(u.ID) {
		return nil, oci.ErrUploadUnknown
	}
	late := time.NewTimer(s.cfg.SessionWait)
	defer late.Stop()
	for {
		up, busy := s.take(u)
		if busy == nil {
			if up == nil {
				return nil, oci.ErrUploadUnknown
			}
			return up, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, oci.ErrUnavailable.Wrap(context.Cause(ctx))
		case <-late.C:
			return nil, oci.ErrUploadInvalid.Because("another request is writing to this upload")
		}
	}
}

// take returns the session u, now the caller's; or what tells when it may be.
func (s *Store) take(u oci.Upload) (up *upload, busy <-chan struct{}) {
	s.ups.mu.Lock()
	defer s.ups.mu.Unlock()
	up = s.ups.byID[u.ID]
	if up == nil || up.repo != u.Repo {
		return nil, nil
	}
	if up.busy != nil {
		return nil, up.busy
	}
	up.busy = make(chan struct{})
	return up, nil
}

func (s *Store) release(up *upload) {
	s.ups.mu.Lock()
	defer s.ups.mu.Unlock()
	close(up.busy)
	up.busy, up.used = nil, time.Now()
}

// drop forgets the session and removes its files. Its request still releases
// it.
func (s *Store) drop(up *upload) {
	s.ups.mu.Lock()
	if s.ups.byID[up.id] == up {
		delete(s.ups.byID, up.id)
		if up.done == "" {
			s.ups.open--
		}
	}
	s.ups.mu.Unlock()
	_ = os.Remove(s.uploadPath(up))
	_ = os.Remove(s.recordPath(up))
}

func (s *Store) uploadPath(up *upload) string { return s.uploadsDir + up.id }

// Append adds what r holds at off, which must be the upload's size, or below
// zero for "at the end". It returns the size reached. Where r ends early, what
// came stays and the client may go on from there.
func (s *Store) Append(ctx context.Context, u oci.Upload, off int64, r io.Reader) (int64, error) {
	up, err := s.acquire(ctx, u)
	if err != nil {
		return 0, fmt.Errorf("append to upload: %w", err)
	}
	defer s.release(up)
	w, err := s.resume(ctx, up, off)
	if err == nil {
		err = s.receive(ctx, up, w, r)
		_ = w.file.Close()
		err = s.keep(up, err)
	}
	if err != nil {
		return 0, fmt.Errorf("append to upload: %w", err)
	}
	return up.size.Load(), nil
}

// resume opens the file of up for a request that goes on at off.
func (s *Store) resume(ctx context.Context, up *upload, off int64) (*inflow, error) {
	if up.done != "" {
		return nil, oci.ErrUploadUnknown
	}
	if off >= 0 && off != up.size.Load() {
		return nil, oci.ErrUploadOutOfOrder
	}
	if err := s.writable(-1); err != nil {
		return nil, err
	}
	f, err := openFile(s.uploadPath(up), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, asFull(err)
	}
	if up.hash == nil {
		if up.hash, err = s.rehash(ctx, f, up.size.Load(), up.algorithm); err != nil {
			_ = f.Close()
			return nil, err
		}
	}
	size := up.size.Load()
	return &inflow{file: f, hash: up.hash, size: size, begun: size - size%flushSize, wrote: up.size.Store}, nil
}

// receive writes what r holds behind the bytes of up, whose file is w's.
func (s *Store) receive(ctx context.Context, up *upload, w *inflow, r io.Reader) error {
	if r == nil {
		return nil
	}
	err := s.pour(ctx, w, r)
	if body := (*bodyError)(nil); err != nil && !errors.As(err, &body) {
		up.hash = nil // it may have seen bytes that the disk did not take
	}
	return asUpload(err)
}

// rehash reads the first size bytes of f: after a reboot, when no running hash
// of them can be trusted, or when another algorithm than the running one is
// asked for.
func (s *Store) rehash(ctx context.Context, f *os.File, size int64, alg digest.Algorithm) (hash.Hash, error) {
	h, err := newHash(alg)
	if err != nil {
		return nil, err
	}
	buf, give := s.buffers.small()
	if big, giveBig, ok := s.buffers.large(); ok {
		give()
		buf, give = big, giveBig
	}
	defer give()
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return nil, asUpload(&bodyError{err})
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		_, _ = h.Write(buf[:n])
		off += int64(n)
		if err != nil && off < size {
			return nil, oci.ErrUnavailable.Wrap(err)
		}
	}
	return h, nil
}

// keep ends a request that did not finish up: what it received is recorded, or
// given up where the disk is full, as a partial upload would only keep it so.
func (s *Store) keep(up *upload, err error) error {
	if !errors.Is(err, oci.ErrDiskFull) {
		if rerr := s.record(up); rerr != nil && err == nil {
			err = rerr
		}
	}
	if errors.Is(err, oci.ErrDiskFull) {
		s.drop(up)
	}
	return err
}

// Size returns how many bytes of an open upload have arrived. Who asks usually
// wants to go on from there, after a connection that broke: where a request
// still writes, it is given the time that acquire gives it.
func (s *Store) Size(ctx context.Context, u oci.Upload) (int64, error) {
	up, err := s.acquire(ctx, u)
	if err == nil {
		s.release(up)
	} else if !errors.Is(err, oci.ErrUploadInvalid) {
		return 0, fmt.Errorf("ask for upload: %w", err)
	}
	s.ups.mu.Lock()
	defer s.ups.mu.Unlock()
	up = s.ups.byID[u.ID]
	if up == nil || up.done != "" {
		return 0, fmt.Errorf("ask for upload: %w", oci.ErrUploadUnknown)
	}
	return up.size.Load(), nil
}

// Finish adds what r holds (nil: nothing) as Append does, and makes the whole
// the blob d. It leaves a mark, so that the same Finish of the same upload has
// the same answer when it is repeated: the first answer may have been lost.
// The mark is bound to the session, not to the digest: accepting any digest
// that is held would let a client link bytes that it never had.
func (s *Store) Finish(ctx context.Context, u oci.Upload, off int64, r io.Reader, d digest.Digest) (int64, error) {
	size, err := s.finish(ctx, u, off, r, d)
	if err != nil {
		return 0, fmt.Errorf("finish upload: %w", err)
	}
	return size, nil
}

func (s *Store) finish(ctx context.Context, u oci.Upload, off int64, r io.Reader, d digest.Digest) (int64, error) {
	if _, err := s.path(d); err != nil {
		return 0, err
	}
	up, err := s.acquire(ctx, u)
	if err != nil {
		return 0, err
	}
	defer s.release(up)
	if up.done == d {
		return s.finishAgain(d)
	}
	w, err := s.resume(ctx, up, off)
	if err != nil {
		return 0, err
	}
	defer w.file.Close()
	if err := s.receive(ctx, up, w, r); err != nil {
		return 0, s.keep(up, err)
	}
	h := up.hash
	if d.Algorithm() != up.algorithm {
		if h, err = s.rehash(ctx, w.file, w.size, d.Algorithm()); err != nil {
			return 0, s.keep(up, err)
		}
	}
	if digest.NewDigest(d.Algorithm(), h) != d {
		s.drop(up)
		return 0, oci.ErrDigestInvalid.Because("the uploaded content has another digest")
	}
	if err := s.commit(w.file, d); err != nil {
		return 0, s.keep(up, err)
	}
	s.mark(up, d)
	return w.size, nil
}

// finishAgain answers a repeated Finish. The blob is offered once more and thus
// used now, unless it was removed since.
func (s *Store) finishAgain(d digest.Digest) (int64, error) {
	if err := s.sound(); err != nil {
		return 0, err
	}
	size, held := s.Touch(d)
	if !held {
		return 0, oci.ErrUploadUnknown
	}
	return size, nil
}

// mark turns a finished session into the mark of it. Beyond MaxUploads the
// oldest mark goes.
func (s *Store) mark(up *upload, d digest.Digest) {
	var oldest *upload
	s.ups.mu.Lock()
	up.hash, up.done = nil, d
	s.ups.open--
	s.ups.marks = append(s.ups.marks, up.id)
	if len(s.ups.marks) > s.cfg.MaxUploads {
		oldest = s.ups.byID[s.ups.marks[0]]
		s.ups.marks = s.ups.marks[1:]
	}
	s.ups.mu.Unlock()
	if oldest != nil {
		s.drop(oldest)
	}
	if err := s.record(up); err != nil {
		// The blob is durable; only a repeat after a restart will not know.
		s.log.Warn("cannot record a finished upload", "error", err)
	}
}

// Cancel gives an open upload up.
func (s *Store) Cancel(ctx context.Context, u oci.Upload) error {
	up, err := s.acquire(ctx, u)
	if err != nil {
		return fmt.Errorf("cancel upload: %w", err)
	}
	defer s.release(up)
	if up.done != "" {
		return fmt.Errorf("cancel upload: %w", oci.ErrUploadUnknown)
	}
	s.drop(up)
	return nil
}
