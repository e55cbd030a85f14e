package metadata

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"
)

var errForeign = errors.New("the snapshot is not of this mesh")

// Snapshot implements raft.FSM. It only notes how far the state has come: the
// checkpoint that Persist makes may hold later commands too, which raft sends
// again and the state skips, as after any restart.
func (s *state) Snapshot() (raft.FSMSnapshot, error) {
	// Raft counts an entry as applied that was refused; a snapshot would let
	// it drop the entry from the log.
	if err := s.failure(); err != nil {
		return nil, err
	}
	return &fsmSnapshot{s: s, applied: s.applied()}, nil
}

// fsmSnapshot is a snapshot that is yet to be made.
type fsmSnapshot struct {
	s       *state
	applied uint64
}

// Persist implements raft.FSMSnapshot.
func (f *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	own, ok := sink.(*snapshotSink)
	if !ok {
		return errors.New("snapshots go to the state's own store")
	}
	db, err := f.s.acquire()
	if err != nil {
		return err
	}
	defer f.s.mu.RUnlock()
	if have := f.s.applied(); have < f.applied {
		return fmt.Errorf("the state went back to entry %d from %d", have, f.applied)
	}
	return own.checkpoint(db, f.applied)
}

// Release implements raft.FSMSnapshot.
func (f *fsmSnapshot) Release() {}

// Restore implements raft.FSM: it replaces the whole state by the one that the
// stream holds, or leaves all as it was. Whoever reads meanwhile gets the old
// state or the new one. The state never goes back: of a stream that holds
// nothing later, nothing is taken, and the entries after it that raft sends
// again are skipped.
func (s *state) Restore(stream io.ReadCloser) error {
	err := s.failure()
	if err == nil {
		err = s.restore(stream)
	}
	if err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	return nil
}

func (s *state) restore(stream io.Reader) error {
	d, err := newDecoder(stream)
	if err != nil {
		return err
	}
	if err := s.admit(d.header); err != nil {
		return err
	}
	if s.covers(d.header) {
		return d.drain()
	}
	n, err := dbNumber(s.name)
	if err != nil {
		return err
	}
	name := dbName(n + 1)
	s.discard(name)
	db, l, err := s.build(name, d)
	if err != nil {
		s.discard(name)
		return err
	}
	s.step("built")
	if err := s.setCurrent(name); err != nil {
		err = errors.Join(err, db.Close())
		if still, unread := s.current(); unread != nil || still != s.name {
			// Which of the two the next start finds is not known.
			s.fatal(fmt.Errorf("replace the state: %w", err))
			return err
		}
		s.discard(name)
		return err
	}
	s.step("switched")
	return s.swap(name, db, l)
}

// admit refuses the state of another mesh, and of this one in another epoch:
// one from before a recovery is the past, and one from after another recovery
// is for nodes that gave up their own (SetAside).
func (s *state) admit(h header) error {
	switch c := s.cluster(); {
	case c.ID == "":
		return nil
	case h.cluster != c.ID:
		return fmt.Errorf("%w: it is of %q, this is %q", errForeign, h.cluster, c.ID)
	case h.epoch != c.Epoch:
		return fmt.Errorf("%w: it is of epoch %s, this is epoch %s", errForeign, h.epoch, c.Epoch)
	}
	return nil
}

// covers reports whether this state holds all that a state of header h does.
func (s *state) covers(h header) bool {
	c := s.cluster()
	return c.ID != "" && h.cluster == c.ID && h.epoch == c.Epoch && h.index <= s.at.index
}

// build makes a database of a stream, durable and proved, and opens it.
func (s *state) build(name string, d *decoder) (*pebble.DB, loaded, error) {
	dir := filepath.Join(s.dir, name)
	if err := s.write(dir, d); err != nil {
		return nil, loaded{}, err
	}
	if err := syncDir(s.dir); err != nil {
		return nil, loaded{}, err
	}
	db, err := pebble.Open(dir, s.options())
	if err != nil {
		return nil, loaded{}, err
	}
	l, err := load(db)
	var h header
	if err == nil {
		h, err = readHeader(db)
	}
	if err == nil && h != d.header {
		err = fmt.Errorf("%w: its header is of another state", errStream)
	}
	if err != nil {
		return nil, loaded{}, errors.Join(err, db.Close())
	}
	return db, l, nil
}

// write fills a new database with a stream and flushes it, which makes it
// durable without a log of what was written.
func (s *state) write(dir string, d *decoder) (err error) {
	o := s.options()
	o.DisableWAL, o.ErrorIfExists = true, true
	db, err := pebble.Open(dir, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	s.step("opened")
	b := db.NewBatch()
	defer func() { b.Close() }()
	for {
		k, v, err := d.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = b.Set(k, v, nil)
		}
		if err == nil && b.Len() > 512<<10 {
			err = b.Commit(pebble.NoSync)
			b.Reset()
		}
		if err != nil {
			return err
		}
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return err
	}
	s.step("written")
	return db.Flush()
}

// swap puts db in the place of the database that is in use, once nobody reads
// that, and deletes the old one.
func (s *state) swap(name string, db *pebble.DB, l loaded) error {
	s.mu.Lock()
	if s.db == nil {
		s.mu.Unlock()
		return errors.Join(errStateClosed, db.Close())
	}
	old, oldName := s.db, s.name
	s.hot.changing(nil)
	s.db, s.name = db, name
	s.hot.changed()
	s.adopt(l)
	s.mu.Unlock()
	err := old.Close()
	s.step("swapped")
	s.discard(oldName)
	s.membersChanged()
	s.tellNamed(nil, true)
	if err != nil {
		s.log.Warn("cannot close the state that a snapshot replaced", "error", err)
	}
	return nil
}

// step tells tests where a crash could happen.
func (s *state) step(name string) {
	if s.atStep != nil {
		s.atStep(name)
	}
}
