package metadata

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// snapshotStore keeps the two newest snapshots, each in a folder of its own. A
// snapshot of this node's state is a checkpoint: hard links to the files of
// the database, made in milliseconds whatever its size. A stream is made of it
// only when a follower needs one. A snapshot that was received is the stream
// as it came, proved before it counts.
type snapshotStore struct {
	dir   string
	state *state
	log   *slog.Logger

	mu     sync.Mutex
	last   uint64                 // number of the newest snapshot
	opened map[string]*checkpoint // those that are being streamed, which must not be deleted
}

const (
	keepSnapshots = 2

	tmpSuffix     = ".tmp"
	metaFile      = "meta.json"
	streamFile    = "stream"
	checkpointDir = "db"
)

// snapshotMeta is what meta.json holds.
type snapshotMeta struct {
	raft.SnapshotMeta
	Number  uint64 // rises with each snapshot of this store
	Applied uint64 // the last command that it is sure to hold
}

var _ raft.SnapshotStore = (*snapshotStore)(nil)

// newSnapshotStore opens the snapshots under dir, made where absent, which
// must be on the file system of s.
func newSnapshotStore(dir string, s *state) (*snapshotStore, error) {
	t := &snapshotStore{dir: dir, state: s, log: s.log, opened: make(map[string]*checkpoint)}
	if err := t.start(); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return t, nil
}

func (t *snapshotStore) start() error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	for _, e := range entries { // what a crash left
		if strings.HasSuffix(e.Name(), tmpSuffix) {
			t.discard(e.Name())
		}
	}
	metas, err := t.metas()
	for _, m := range metas {
		t.last = max(t.last, m.Number)
	}
	return err
}

// restoreAtStart reports whether raft must restore the newest snapshot when it
// starts, since the state is older: NoSnapshotRestoreOnStart is its opposite.
func (t *snapshotStore) restoreAtStart() (bool, error) {
	metas, err := t.metas()
	if err != nil || len(metas) == 0 {
		return false, err
	}
	return t.state.applied() < metas[0].Applied, nil
}

// List implements raft.SnapshotStore. The size of a checkpoint's stream is
// known only to Open.
func (t *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	metas, err := t.metas()
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	list := make([]*raft.SnapshotMeta, len(metas))
	for i := range metas {
		list[i] = &metas[i].SnapshotMeta
	}
	return list, nil
}

// metas returns the snapshots there are, newest first.
func (t *snapshotStore) metas() ([]snapshotMeta, error) {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return nil, err
	}
	var all []snapshotMeta
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), tmpSuffix) {
			continue
		}
		m, err := t.meta(e.Name())
		if err != nil {
			t.log.Warn("a snapshot cannot be used", "id", e.Name(), "error", err)
			continue
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b snapshotMeta) int {
		return cmp.Or(cmp.Compare(b.Term, a.Term), cmp.Compare(b.Index, a.Index), cmp.Compare(b.Number, a.Number))
	})
	return all, nil
}

func (t *snapshotStore) meta(id string) (m snapshotMeta, err error) {
	b, err := os.ReadFile(filepath.Join(t.dir, id, metaFile))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, err
	}
	if m.ID != id || m.Version != 1 {
		return m, fs.ErrInvalid
	}
	return m, nil
}

// Create implements raft.SnapshotStore.
func (t *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != 1 {
		return nil, fmt.Errorf("make snapshot: unknown version %d", version)
	}
	t.mu.Lock()
	t.last++
	n := t.last
	t.mu.Unlock()
	k := &snapshotSink{store: t, meta: snapshotMeta{Number: n, SnapshotMeta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, n), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}}
	k.dir = filepath.Join(t.dir, k.meta.ID+tmpSuffix)
	if err := os.Mkdir(k.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make snapshot: %w", err)
	}
	return k, nil
}

// Open implements raft.SnapshotStore.
func (t *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m, err := t.meta(id)
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot: %w", err)
	}
	stream, err := os.Open(filepath.Join(t.dir, id, streamFile))
	if err == nil {
		return &m.SnapshotMeta, stream, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("open snapshot: %w", err)
	}
	r, size, err := t.stream(id)
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot: %w", err)
	}
	m.Size = size
	return &m.SnapshotMeta, r, nil
}

// checkpoint is one that is being streamed, to any number of followers.
type checkpoint struct {
	db    *pebble.DB
	size  int64 // of its stream
	users int
}

// stream opens the stream of a checkpoint. The pass that its size needs is
// made once for all who stream it at the same time.
func (t *snapshotStore) stream(id string) (io.ReadCloser, int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.opened[id]
	if c == nil {
		var err error
		if c, err = t.openCheckpoint(id); err != nil {
			return nil, 0, err
		}
		t.opened[id] = c
	}
	c.users++
	e, err := newEncoder(c.db)
	if err != nil {
		return nil, 0, errors.Join(err, t.release(id))
	}
	return &checkpointStream{encoder: e, store: t, id: id}, c.size, nil
}

// backup returns the stream of the state as it is now, made from a checkpoint
// of its own, so that whoever reads it slowly holds up nobody. The checkpoint
// goes when the stream is closed, or at the next start.
func (t *snapshotStore) backup() (*Backup, error) {
	name, err := t.spare("backup")
	if err != nil {
		return nil, err
	}
	r, size, err := t.checkpointNow(name)
	if err != nil {
		t.discard(name)
		return nil, err
	}
	t.mu.Lock()
	db := t.opened[name].db // until r is closed
	t.mu.Unlock()
	return &Backup{Size: size, db: db, ReadCloser: &backupStream{Reader: r, end: sync.OnceValue(func() error {
		err := r.Close()
		t.discard(name)
		return err
	})}}, nil
}

// backupStream is a stream that leaves nothing behind.
type backupStream struct {
	io.Reader
	end func() error
}

// Close implements io.Closer.
func (b *backupStream) Close() error { return b.end() }

// spare makes a folder that lasts no longer than this process.
func (t *snapshotStore) spare(what string) (name string, err error) {
	t.mu.Lock()
	t.last++
	name = fmt.Sprintf("%s-%d%s", what, t.last, tmpSuffix)
	t.mu.Unlock()
	return name, os.Mkdir(filepath.Join(t.dir, name), 0o700)
}

func (t *snapshotStore) checkpointNow(name string) (io.ReadCloser, int64, error) {
	db, err := t.state.acquire()
	if err != nil {
		return nil, 0, err
	}
	err = db.Checkpoint(filepath.Join(t.dir, name, checkpointDir), pebble.WithFlushedWAL())
	t.state.mu.RUnlock()
	if err != nil {
		return nil, 0, err
	}
	return t.stream(name)
}

func (t *snapshotStore) openCheckpoint(id string) (*checkpoint, error) {
	db, err := pebble.Open(filepath.Join(t.dir, id, checkpointDir), &pebble.Options{
		FS: vfs.Default, ReadOnly: true, CacheSize: 1 << 20, MaxOpenFiles: 256,
		Logger: pebbleLog{t.log, t.state.fatal, newRepeats()},
	})
	if err != nil {
		return nil, err
	}
	size, err := streamSize(db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &checkpoint{db: db, size: size}, nil
}

// release closes a checkpoint that nobody streams any more; t.mu is held.
func (t *snapshotStore) release(id string) error {
	c := t.opened[id]
	if c.users--; c.users > 0 {
		return nil
	}
	delete(t.opened, id)
	err := c.db.Close()
	t.reap()
	return err
}

// reap deletes all but the newest snapshots, and those being streamed; t.mu
// is held.
func (t *snapshotStore) reap() {
	metas, err := t.metas()
	if err != nil {
		t.log.Warn("cannot look for old snapshots", "error", err)
	}
	for i, m := range metas {
		if i < keepSnapshots || t.opened[m.ID] != nil {
			continue
		}
		// In two steps, lest a crash leave a part that looks whole.
		if err := os.Rename(filepath.Join(t.dir, m.ID), filepath.Join(t.dir, m.ID+tmpSuffix)); err != nil {
			t.log.Warn("cannot delete an old snapshot", "error", err)
			continue
		}
		t.discard(m.ID + tmpSuffix)
	}
}

func (t *snapshotStore) discard(name string) {
	if err := os.RemoveAll(filepath.Join(t.dir, name)); err != nil {
		t.log.Warn("cannot delete an old snapshot", "error", err)
	}
}

// checkpointStream is the stream of a checkpoint, which it keeps open.
type checkpointStream struct {
	*encoder
	store *snapshotStore
	id    string
	once  sync.Once
}

// Close implements io.Closer.
func (c *checkpointStream) Close() (err error) {
	c.once.Do(func() {
		c.store.mu.Lock()
		defer c.store.mu.Unlock()
		err = errors.Join(c.encoder.Close(), c.store.release(c.id))
	})
	return err
}
