package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// badDisk is a log store on a disk that does as it is told.
type badDisk struct {
	walStore
	err  error
	hang chan struct{}
}

func (b *badDisk) StoreLogs(logs []*raft.Log) error {
	if b.hang != nil {
		<-b.hang
	}
	if b.err != nil {
		return b.err
	}
	return b.walStore.StoreLogs(logs)
}

func (b *badDisk) SetUint64(key []byte, val uint64) error {
	if b.err != nil {
		return b.err
	}
	return b.walStore.SetUint64(key, val)
}

func testLogStore(t *testing.T) (*logStore, *badDisk, chan error) {
	died := make(chan error, 2)
	s, err := openLog(t.TempDir(), newRaftLog(testLog()), bounds{bytes: 16 << 20, segment: 1 << 20}, func(err error) { died <- err })
	must(t, err)
	t.Cleanup(func() {
		select {
		case <-s.closed: // by the test
		default:
			s.Close()
		}
	})
	disk := &badDisk{walStore: s.walStore}
	s.walStore = disk
	return s, disk, died
}

func logEntry(i uint64, typ raft.LogType, size int) *raft.Log {
	return &raft.Log{Index: i, Term: 1 + i/100, Type: typ, Data: make([]byte, size)}
}

func TestDiskErrors(t *testing.T) {
	for _, tc := range []struct {
		name  string
		err   error
		fatal bool
	}{
		{"a failed sync", &os.PathError{Op: "sync", Path: "x", Err: syscall.EIO}, true},
		{"read-only by now", &os.PathError{Op: "write", Path: "x", Err: syscall.EROFS}, true},
		{"full", &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, false},
		{"over quota", &os.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}, false},
		{"raft's own mistake", errors.New("non-monotonic"), false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, disk, died := testLogStore(t)
			disk.err = tc.err
			if err := s.StoreLog(logEntry(1, raft.LogCommand, 1)); !errors.Is(err, tc.err) {
				t.Errorf("raft is told %v", err)
			}
			if fatal := len(died) > 0; fatal != tc.fatal {
				t.Errorf("fatal: %v", fatal)
			}
		})
	}
}

// Raft panics where its term cannot be saved, also on a full disk. It is not
// told so before the process has ended.
func TestTermNotSaved(t *testing.T) {
	for _, errno := range []error{syscall.EIO, syscall.ENOSPC} {
		s, disk, died := testLogStore(t)
		must(t, s.SetUint64([]byte("term"), 1))
		disk.err = errno
		told := make(chan error, 1)
		go func() { told <- s.SetUint64([]byte("term"), 2) }()
		if err := <-died; !errors.Is(err, errno) {
			t.Errorf("ended by %v", err)
		}
		if len(told) > 0 {
			t.Errorf("raft is told %v", <-told)
		}
		disk.err = nil
		if term, err := s.GetUint64([]byte("term")); term != 1 || err != nil {
			t.Errorf("term %d: %v", term, err)
		}
		must(t, s.Close())
		if err := <-told; !errors.Is(err, errno) {
			t.Errorf("raft is told %v in the end", err)
		}
	}
}

// Ten ticks in one append end the process; nine, a pause between ticks however
// long, and many short appends do not.
func TestWatchdog(t *testing.T) {
	s, disk, died := testLogStore(t)
	ctx, cancel := context.WithCancel(context.Background())
	ticks := make(chan time.Time)
	watched := make(chan struct{})
	go func() { s.watch(ctx, ticks); close(watched) }()
	defer func() { cancel(); <-watched }()
	lasted := func(want int) func() error { // one append is under way, for so many ticks
		return func() error {
			s.writing.Lock()
			defer s.writing.Unlock()
			for _, got := range s.ticks {
				if got == want {
					return nil
				}
			}
			return fmt.Errorf("not %d ticks: %v", want, s.ticks)
		}
	}
	index := uint64(0)
	hung := func(n int) {
		disk.hang = make(chan struct{})
		index++
		stored := make(chan error, 1)
		go func() { stored <- s.StoreLog(logEntry(index, raft.LogCommand, 1)) }()
		for i := range n {
			eventually(t, "the append to last", lasted(i))
			ticks <- time.Time{}
		}
		eventually(t, "the last tick", lasted(n))
		close(disk.hang)
		must(t, <-stored)
	}
	for range 3 {
		hung(hungTicks - 1)
	}
	if len(died) > 0 {
		t.Fatalf("ended by %v", <-died)
	}
	hung(hungTicks)
	if err := <-died; err == nil {
		t.Error("ended without a reason")
	}
}

func TestMarks(t *testing.T) {
	s, _, _ := testLogStore(t)
	const c, b = raft.LogCommand, raft.LogBarrier
	store := func(first uint64, types ...raft.LogType) {
		for i, typ := range types {
			must(t, s.StoreLog(logEntry(first+uint64(i), typ, 10)))
		}
	}
	check := func(what string, want map[uint64]uint64) {
		t.Helper()
		for index, command := range want {
			got, ok := s.command(index)
			if got != command || ok != (command != 0) {
				t.Errorf("%s: the last command up to %d is %d (%v), want %d", what, index, got, ok, command)
			}
			var l raft.Log
			must(t, s.GetLog(index, &l))
			if s.term(index) != l.Term {
				t.Errorf("%s: entry %d is of term %d, want %d", what, index, s.term(index), l.Term)
			}
		}
	}
	store(98, b, b, c, b, c, b, b) // 98..104
	check("stored", map[uint64]uint64{98: 0, 99: 0, 100: 100, 101: 100, 102: 102, 104: 102})
	must(t, s.DeleteRange(103, 104))
	store(103, c, b)
	check("another end", map[uint64]uint64{102: 102, 103: 103, 104: 103})
	must(t, s.DeleteRange(98, 103))
	store(105, b)
	check("the start gone", map[uint64]uint64{104: 103, 105: 103})

	s.marks, s.first, s.baseOK = nil, 0, false // as after a restart
	store(106, b, b)
	check("reopened", map[uint64]uint64{105: 0, 107: 0})
	store(108, c)
	s.marks, s.first, s.baseOK = nil, 0, false
	store(109, b, b)
	check("reopened, a command in the log", map[uint64]uint64{108: 108, 109: 108, 110: 108})

	if n, all := s.newest(30); n != 3 || all {
		t.Errorf("%d entries in 30 bytes, all: %v", n, all)
	}
	if n, all := s.newest(1000); n != 7 || !all {
		t.Errorf("%d entries in 1000 bytes, all: %v", n, all)
	}
	must(t, s.DeleteRange(104, 110))
	if n, all := s.newest(30); n != 0 || !all {
		t.Errorf("%d entries in an empty log, all: %v", n, all)
	}
	store(500, b, c) // after a restored snapshot
	check("after a gap", map[uint64]uint64{500: 0, 501: 501})
}

// The state must be durable before the log forgets what it rests on.
func TestTruncationWaitsForState(t *testing.T) {
	s, _, _ := testLogStore(t)
	for i := range uint64(10) {
		must(t, s.StoreLog(logEntry(i+1, raft.LogCommand, 1)))
	}
	refusal := errors.New("not durable")
	s.before = func() error { return refusal }
	if err := s.DeleteRange(1, 5); !errors.Is(err, refusal) {
		t.Errorf("truncated: %v", err)
	}
	must(t, s.DeleteRange(8, 10)) // entries that were never committed
	if first, _ := s.FirstIndex(); first != 1 {
		t.Errorf("the log starts at %d", first)
	}
}

// Entries bound the log, and so do their bytes.
func TestLogBoundedByBytes(t *testing.T) {
	m := newMesh(t)
	m.bounds.bytes, m.bounds.segment = 1<<20, 128<<10
	n := m.add("z")
	for i := range 40 {
		body := bytes.Repeat([]byte{byte(i)}, 100_000)
		img := oci.Manifest{MediaType: oci.TypeIndex, Digest: digest.FromBytes(body), Size: int64(len(body))}
		must(t, n.PutManifest(context.Background(), Put{Repo: "r", Manifest: img, Body: body}))
		must(t, n.push("r", fmt.Sprint(i), i))
	}
	eventually(t, "a short log", func() error {
		if _, all := n.logs.newest(m.bounds.bytes + m.bounds.bytes/8); !all {
			return errors.New("it is too long")
		}
		return nil
	})
	if first, err := n.logs.FirstIndex(); err != nil || first < 2 {
		t.Errorf("the log starts at %d (%v)", first, err)
	}
	before, err := n.state.hash()
	must(t, err)
	n.stop()
	n.start(nil)
	for i := range 40 {
		must(t, n.pull("r", fmt.Sprint(i), i))
	}
	after, err := n.state.hash()
	must(t, err)
	if string(before) != string(after) {
		t.Error("the state changed over a restart from snapshot and log")
	}
}

// A member that lost everything, or came too late for the log, gets a snapshot.
func TestSnapshotToFollower(t *testing.T) {
	m := newMesh(t)
	m.bounds.trailing, m.bounds.segment = 4, 4<<10 // a truncated entry is readable until its file goes
	for range 3 {
		m.add("z")
	}
	m.settle(3)
	leader, n := m.leader(), m.follower()
	n.stop()
	must(t, os.RemoveAll(n.dir))
	for i := range 50 {
		must(t, leader.push("r", fmt.Sprint(i), i))
	}
	must(t, leader.push("r", "after", 1000))
	for _, o := range m.running() { // whoever leads when it comes back
		must(t, o.Writable(context.Background()))
		must(t, o.raft.Snapshot().Error())
	}
	n.start(nil)
	eventually(t, "the state to come", func() error { return n.pull("r", "after", 1000) })
	for i := range 50 {
		must(t, n.pull("r", fmt.Sprint(i), i))
	}
	if first, err := n.logs.FirstIndex(); err != nil || first != 0 && first < 40 {
		t.Errorf("it got the log from %d on (%v)", first, err)
	}
	must(t, n.push("r", "after", 1001))
	m.equal(t)

	late := m.add("z")
	eventually(t, "the newcomer", func() error { return late.pull("r", "after", 1001) })
	m.equal(t)
}
