package metadata

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

// logStore is raft's log and stable store: raft-wal, watched.
//
// Raft handles a disk that returns errors, but a leader whose append hangs
// keeps its followers content with heartbeats while nothing is written
// (hashicorp/raft#503), so a write that lasts ten ticks ends the process, as
// does one that fails: after a failed fsync a second one may falsely succeed.
// A full disk is neither; raft steps down and tries again.
//
// It also knows of each entry what raft tells nobody: its term, its size, and
// the last command at or below it.
type logStore struct {
	walStore
	fatal  func(error)
	before func() error  // the state made durable, before the log forgets what it rests on
	grown  chan struct{} // capacity 1: another step bytes were appended
	closed chan struct{} // by Close
	step   int

	applied func() uint64 // how far the state has come

	writing sync.Mutex
	ticks   map[*string]int // writes under way and the ticks they have lasted

	mu     sync.Mutex
	first  uint64      // index of marks[0]
	marks  []entryMark // every entry stored by this process that is still there
	base   uint64      // the last command below first, where baseOK
	baseOK bool
	since  int // bytes, since the last step
}

// walStore is what logStore needs of raft-wal.
type walStore interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

// entryMark is what logStore remembers of an entry.
type entryMark struct {
	term    uint64
	command uint64 // the last command at or below it; 0: below all marks
	size    uint32
}

const hungTicks = 10 // one second each

// emptiedKey is where the stable store keeps how far the state had come when
// the log was last emptied.
const emptiedKey = "flotilla-emptied"

func openLog(dir string, log raftLog, b bounds, fatal func(error)) (*logStore, error) {
	w, err := wal.Open(dir, wal.WithSegmentSize(b.segment), wal.WithLogger(log))
	if err != nil {
		return nil, fmt.Errorf("open raft log: %w", err)
	}
	s := &logStore{walStore: w, fatal: fatal, step: b.bytes / 16, ticks: make(map[*string]int), grown: make(chan struct{}, 1), closed: make(chan struct{})}
	s.grown <- struct{}{} // what is there at the start counts too
	return s, nil
}

// IsMonotonic implements raft.MonotonicLogStore, as raft-wal does.
func (s *logStore) IsMonotonic() bool { return true }

func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *logStore) StoreLogs(logs []*raft.Log) error {
	err := s.write("append to the raft log", func() error { return s.walStore.StoreLogs(logs) })
	if err == nil {
		s.remember(logs)
	}
	return err
}

func (s *logStore) Set(key, val []byte) error {
	return s.write("write raft's vote or term", func() error { return s.walStore.Set(key, val) })
}

// SetUint64 does not return an error to raft, which panics where its term
// cannot be saved: the process ends, and raft waits for that. Nor may the node go
// on with a term that it would forget.
func (s *logStore) SetUint64(key []byte, val uint64) error {
	const what = "write raft's vote or term"
	err := s.write(what, func() error { return s.walStore.SetUint64(key, val) })
	if err != nil {
		s.fatal(fmt.Errorf("%s: %w", what, err))
		<-s.closed
	}
	return err
}

// Close is called once, after raft has stopped or was given up.
func (s *logStore) Close() error {
	close(s.closed)
	return s.walStore.Close()
}

// DeleteRange is raft's only way to shorten the log: at its end, where another
// leader's entries replace some that were never committed, and at its start,
// after a snapshot. The snapshot has made the state durable already; asking
// once more costs nothing and holds whatever raft may do in future.
//
// Raft empties the log after it has received a snapshot, even one that ends
// before the log. How far the state has come is noted then, since no entry in
// the log will show that it ever was there.
func (s *logStore) DeleteRange(lo, hi uint64) error {
	first, err := s.FirstIndex()
	if err != nil {
		return err
	}
	if lo <= first {
		if err := s.prepare(hi); err != nil {
			return err
		}
	}
	err = s.write("truncate the raft log", func() error { return s.walStore.DeleteRange(lo, hi) })
	if err == nil {
		s.forget(lo, hi)
	}
	return err
}

// prepare comes before the log forgets its entries up to hi.
func (s *logStore) prepare(hi uint64) error {
	if s.before != nil {
		if err := s.before(); err != nil {
			return err
		}
	}
	last, err := s.LastIndex()
	if err != nil || hi < last || s.applied == nil {
		return err
	}
	return s.SetUint64([]byte(emptiedKey), s.applied())
}

// emptied returns how far the state had come when the log was last emptied, 0
// if it never was.
func (s *logStore) emptied() (uint64, error) { return s.GetUint64([]byte(emptiedKey)) }

// write runs f under the watchdog's eye.
func (s *logStore) write(what string, f func() error) error {
	s.writing.Lock()
	s.ticks[&what] = 0
	s.writing.Unlock()
	err := f()
	s.writing.Lock()
	delete(s.ticks, &what)
	s.writing.Unlock()
	if diskFailed(err) {
		s.fatal(fmt.Errorf("%s: %w", what, err))
	}
	return err
}

// diskFailed tells an error of the disk from a full one and from raft's own
// mistakes. A segment stays sealed when the next one could not be made; only
// opening the log anew mends that.
func diskFailed(err error) bool {
	var errno syscall.Errno
	switch {
	case err == nil, errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return false
	default:
		return errors.Is(err, wal.ErrSealed) || errors.As(err, &errno)
	}
}

// watch is the watchdog. Ticks, not a duration, measure how long a write
// lasts: a process that was stopped for a minute sees one tick of it.
func (s *logStore) watch(ctx context.Context, ticks <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks:
		}
		var hung string
		s.writing.Lock()
		for what := range s.ticks {
			if s.ticks[what]++; s.ticks[what] >= hungTicks {
				hung = *what
			}
		}
		s.writing.Unlock()
		if hung != "" {
			s.fatal(fmt.Errorf("%s: no answer from the disk for %d s", hung, hungTicks))
			return
		}
	}
}

func (s *logStore) remember(logs []*raft.Log) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range logs {
		if n := uint64(len(s.marks)); n == 0 || l.Index != s.first+n { // the first, or after a restored snapshot
			s.marks, s.first, s.baseOK = nil, l.Index, false
		}
		m := entryMark{term: l.Term, size: uint32(len(l.Data))}
		if n := len(s.marks); n > 0 {
			m.command = s.marks[n-1].command
		}
		if l.Type == raft.LogCommand {
			m.command = l.Index
		}
		s.marks = append(s.marks, m)
		s.since += len(l.Data)
	}
	if s.since >= s.step {
		s.since = 0
		wake(s.grown)
	}
}

func (s *logStore) forget(lo, hi uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := uint64(len(s.marks))
	switch {
	case n == 0 || hi < s.first || lo >= s.first+n:
	case lo > s.first: // the end, from lo on
		s.marks = s.marks[:lo-s.first]
	case hi >= s.first+n-1: // all
		s.marks, s.first, s.baseOK = nil, 0, false
	default: // the start, up to hi
		if c := s.marks[hi-s.first].command; c != 0 {
			s.base, s.baseOK = c, true
		}
		s.marks = append([]entryMark(nil), s.marks[hi+1-s.first:]...)
		s.first = hi + 1
	}
}

// mark returns what is remembered of the entry at index.
func (s *logStore) mark(index uint64) (entryMark, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index < s.first || index-s.first >= uint64(len(s.marks)) {
		return entryMark{}, false
	}
	return s.marks[index-s.first], true
}

// term returns the term of the entry at index, 0 if it is not in the log.
func (s *logStore) term(index uint64) uint64 {
	if m, ok := s.mark(index); ok {
		return m.term
	}
	var l raft.Log
	if s.GetLog(index, &l) != nil {
		return 0
	}
	return l.Term
}

// command returns the index of the last command at or below index; false where
// the log holds none, so that the snapshot before it holds all of them.
func (s *logStore) command(index uint64) (uint64, bool) {
	m, ok := s.mark(index)
	if !ok {
		return s.search(index)
	}
	if m.command != 0 {
		return m.command, true
	}
	s.mu.Lock()
	below, base, known := s.first-1, s.base, s.baseOK
	s.mu.Unlock()
	if known {
		return base, true
	}
	base, known = s.search(below)
	if known {
		s.mu.Lock()
		if s.first == below+1 {
			s.base, s.baseOK = base, true
		}
		s.mu.Unlock()
	}
	return base, known
}

func (s *logStore) search(index uint64) (uint64, bool) {
	first, err := s.FirstIndex()
	for ; err == nil && first > 0 && index >= first; index-- {
		var l raft.Log
		if s.GetLog(index, &l) != nil {
			return 0, false
		}
		if l.Type == raft.LogCommand {
			return index, true
		}
	}
	return 0, false
}

// newest counts the newest entries that fit into limit bytes; all reports that
// these are all there are.
func (s *logStore) newest(limit int) (n uint64, all bool) {
	first, err := s.FirstIndex()
	if err != nil || first == 0 {
		return 0, true
	}
	last, err := s.LastIndex()
	if err != nil {
		return 0, true
	}
	for i := last; i >= first; i-- {
		size := 0
		if m, ok := s.mark(i); ok {
			size = int(m.size)
		} else {
			var l raft.Log
			if s.GetLog(i, &l) != nil { // truncated meanwhile
				return n, true
			}
			size = len(l.Data)
		}
		if limit -= size; limit < 0 {
			return n, false
		}
		n++
	}
	return n, true
}

// boundLog keeps the log's bytes in bounds, where raft counts entries: beyond
// them it lets raft take a snapshot that keeps the newest half.
func (c *Catalog) boundLog(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.logs.grown:
		}
		if _, all := c.logs.newest(c.bounds.bytes); all {
			continue
		}
		half, _ := c.logs.newest(c.bounds.bytes / 2)
		if err := c.shorten(ctx, half); err != nil {
			c.log.Info("the raft log is not shortened yet", "error", err)
			select { // such as: a change of raft's configuration is under way
			case <-ctx.Done():
				return
			case <-time.After(5 * time.Second):
				wake(c.logs.grown)
			}
		}
	}
}

func (c *Catalog) shorten(ctx context.Context, keep uint64) error {
	conf := c.raft.ReloadableConfig()
	conf.TrailingLogs = min(keep, c.bounds.trailing)
	if err := c.raft.ReloadConfig(conf); err != nil {
		return err
	}
	err := c.await(ctx, func() raft.Future { return c.raft.Snapshot() })
	conf.TrailingLogs = c.bounds.trailing
	return errors.Join(err, c.raft.ReloadConfig(conf))
}

// wake puts a token into c, a channel of capacity 1, if none is there.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
