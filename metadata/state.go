package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

var (
	// errUnknownOp ends the node: an entry that it does not understand can be
	// neither applied nor skipped, or this replica would differ from others.
	errUnknownOp = errors.New("the log holds an operation that this version of flotilla does not know: upgrade this node")

	errStateClosed = errors.New("the catalogue's state is closed")
)

// state is what the entries of the log have come to, in a pebble database: the
// state machine that raft drives, and what all reads are answered from. Raft
// calls Apply, ApplyBatch, Snapshot and Restore from one goroutine; everything
// else may be called from any.
//
// It is never ahead of what is durable in the log and may be behind it: writes
// are not synced. After a power cut pebble's WAL yields an exact prefix of
// them, the progress record in it says which, and raft sends the rest again.
// Changes of members are the exception: raft sends the rest only after an
// election, and nodes talk to members alone, so that voters who had all
// forgotten each other would never elect.
type state struct {
	dir     string
	log     *slog.Logger
	cache   *pebble.Cache
	fs      vfs.FS // the disk's; a test has one that loses what was not synced
	onFatal func(error)
	atStep  func(step string) // tests end the process, so to speak, at a step of Restore

	// Set before raft runs, see Config.OnNamed; nil tells nobody.
	onNamed func(repo string, d digest.Digest)

	// For reads alone: Apply knows no clock.
	clock   func() time.Time
	linkAge time.Duration

	// mu guards db alone: held for reading while db is in use, for writing
	// while it is replaced or closed.
	mu   sync.RWMutex
	db   *pebble.DB // nil once closed
	name string     // of its folder in dir

	// Owned by raft's goroutine.
	at          progress
	receipts    receiptQueue
	settingSums settingSums

	hot hot

	// Copies for everyone else.
	index           atomic.Uint64
	logTime         atomic.Int64
	settingsVersion atomic.Uint64 // of an entry no older than the last that changed settings; set before index
	roster          atomic.Pointer[roster]
	hook            atomic.Pointer[func()]

	waiting struct {
		sync.Mutex
		moved chan struct{} // closed when index moves, or never will again; nil while nobody waits
		err   error         // why it never will
	}
	failed sync.Once
}

// roster is the part of the state that every request needs.
type roster struct {
	cluster Cluster
	members []Member // by id; without the buried
}

// level returns the feature level that every member has, 0 without members.
func (r *roster) level() (least uint32) {
	for i, m := range r.members {
		if i == 0 || m.Level < least {
			least = m.Level
		}
	}
	return least
}

// applyResult is what raft's ApplyFuture gives for an entry.
type applyResult struct {
	err  *oci.Error // nil when applied
	size int64      // see decision
}

var _ raft.BatchingFSM = (*state)(nil)

// openState opens the state under dir, made where absent. onFatal is called at
// most once, when the state cannot go on: with an entry that it does not
// understand, or a disk that fails. From then on it applies nothing.
func openState(dir string, log *slog.Logger, onFatal func(error)) (*state, error) {
	s := &state{
		dir: dir, log: log, onFatal: onFatal, cache: pebble.NewCache(8 << 20), fs: vfs.Default,
		clock: time.Now, linkAge: linkAge,
	}
	err := s.open()
	if err != nil {
		s.cache.Unref()
		return nil, fmt.Errorf("open state: %w", err)
	}
	return s, nil
}

func (s *state) open() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	name, err := s.current()
	if err != nil {
		return err
	}
	first := name == ""
	if first {
		// What an earlier first start left behind holds nothing: entries are
		// applied only once the file is there.
		s.sweep()
		name = dbName(1)
	}
	db, err := pebble.Open(filepath.Join(s.dir, name), s.options())
	if err != nil {
		return err
	}
	l, err := load(db)
	if err == nil && first {
		err = s.setCurrent(name)
	}
	if err != nil {
		return errors.Join(err, db.Close())
	}
	s.db, s.name = db, name
	s.adopt(l)
	s.sweep()
	return nil
}

func (s *state) options() *pebble.Options {
	o := &pebble.Options{
		Cache:              s.cache,
		FS:                 s.fs, // not one that watches the disk: raft's log is watched, and notices first
		MemTableSize:       2 << 20,
		MaxOpenFiles:       256,
		FormatMajorVersion: pebble.FormatValueSeparation,
		Logger:             pebbleLog{s.log, s.fatal, newRepeats()},
	}
	o.Levels[0].FilterPolicy = bloom.FilterPolicy(10)
	return o
}

// loaded is what is kept in memory of a database.
type loaded struct {
	at       progress
	receipts receiptQueue
	settings settingSums
	roster   *roster
}

func load(db *pebble.DB) (l loaded, err error) {
	if _, err = get(db, []byte{keyProgress}, func(v []byte) (err error) {
		l.at, err = decodeProgress(v)
		return err
	}); err != nil {
		return l, err
	}
	if l.roster, err = loadRoster(db); err != nil {
		return l, err
	}
	if l.settings, err = loadSettingSums(db); err != nil {
		return l, err
	}
	l.receipts, err = loadReceipts(db)
	return l, err
}

func loadRoster(r pebble.Reader) (*roster, error) {
	t := new(roster)
	if _, err := get(r, []byte{keyCluster}, func(v []byte) (err error) {
		t.cluster, err = decodeCluster(v)
		return err
	}); err != nil {
		return nil, err
	}
	err := scan(r, []byte{keyMember}, func(id, v []byte) (bool, error) {
		m, err := decodeMember(string(id), v)
		if err == nil && !m.buried {
			t.members = append(t.members, m.Member)
		}
		return true, err
	})
	return t, err
}

// adopt makes l what the state is; in raft's goroutine, or before it runs.
func (s *state) adopt(l loaded) {
	s.at, s.receipts, s.settingSums = l.at, l.receipts, l.settings
	s.settingsVersion.Store(l.at.index)
	s.roster.Store(l.roster)
	s.publish()
}

// publish tells everyone how far the state has come.
func (s *state) publish() {
	s.logTime.Store(s.at.now)
	s.index.Store(s.at.index)
	s.wake(nil)
}

// wake lets those who wait look again; with an error, they and all who come
// after them wait no more.
func (s *state) wake(err error) {
	w := &s.waiting
	w.Lock()
	defer w.Unlock()
	if w.err == nil {
		w.err = err
	}
	if w.moved != nil {
		close(w.moved)
		w.moved = nil
	}
}

// applied returns the index of the last command that this state holds.
// Entries that are no commands, such as raft's barriers, do not move it.
func (s *state) applied() uint64 { return s.index.Load() }

// waitApplied returns once the state holds the command at index, or a later
// one; else when ctx ends, or the state can go no further.
func (s *state) waitApplied(ctx context.Context, index uint64) error {
	w := &s.waiting
	for s.index.Load() < index {
		w.Lock()
		if w.err != nil {
			w.Unlock()
			return w.err
		}
		if w.moved == nil {
			w.moved = make(chan struct{})
		}
		moved := w.moved
		w.Unlock()
		// Looked at again now that whoever moves it closes our channel.
		if s.index.Load() >= index {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// fatal ends the state's life, the first time.
func (s *state) fatal(err error) {
	s.failed.Do(func() {
		s.wake(err)
		s.onFatal(err)
	})
}

// failure returns why nothing more can be applied, or nil.
func (s *state) failure() error {
	s.waiting.Lock()
	defer s.waiting.Unlock()
	return s.waiting.err
}

// onMembers sets what is called, from raft's goroutine, after members or
// settings have changed. It must not block.
func (s *state) onMembers(fn func()) { s.hook.Store(&fn) }

func (s *state) membersChanged() {
	if fn := s.hook.Load(); fn != nil {
		(*fn)()
	}
}

// tellNamed tells of manifests that were stored, and with others, that more may
// have changed than is told. It is called from raft's goroutine.
func (s *state) tellNamed(manifests []named, others bool) {
	if s.onNamed == nil {
		return
	}
	for _, m := range manifests {
		s.onNamed(m.repo, digest.Digest(m.digest))
	}
	if others {
		s.onNamed("", "")
	}
}

// members returns the members by id.
func (s *state) members() []Member { return slices.Clone(s.roster.Load().members) }

// cluster returns the settings, zero before the mesh is founded.
func (s *state) cluster() Cluster { return s.roster.Load().cluster }

// level returns the feature level that every member has, 0 without members.
func (s *state) level() uint32 { return s.roster.Load().level() }

// now returns the time that ages are measured by when reading: log time, which
// stands still while nothing is written, or the clock where that is later.
func (s *state) now() time.Time {
	now, logged := s.clock(), time.Unix(0, s.logTime.Load())
	if logged.After(now) {
		return logged
	}
	return now
}

// sync makes all that has been applied durable.
func (s *state) sync() error {
	db, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.mu.RUnlock()
	return db.LogData(nil, pebble.Sync)
}

// acquire returns the database, which stays open until s.mu.RUnlock.
func (s *state) acquire() (*pebble.DB, error) {
	s.mu.RLock()
	if s.db == nil {
		s.mu.RUnlock()
		return nil, errStateClosed
	}
	return s.db, nil
}

// close waits for readers and closes the state. Raft must have been shut down.
func (s *state) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.db == nil {
		return nil
	}
	s.wake(errStateClosed)
	err := s.db.Close()
	s.db = nil
	s.cache.Unref()
	if err != nil {
		return fmt.Errorf("close state: %w", err)
	}
	return nil
}
