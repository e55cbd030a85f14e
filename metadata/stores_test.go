package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// latest returns a node's newest snapshot, taken now, as raft would send it.
func latest(t testing.TB, n *testNode) (*raft.SnapshotMeta, []byte) {
	t.Helper()
	must(t, n.raft.Snapshot().Error())
	store, err := newSnapshotStore(filepath.Join(n.dir, "snapshots"), n.state)
	must(t, err)
	list, err := store.List()
	must(t, err)
	meta, r, err := store.Open(list[0].ID)
	must(t, err)
	b, err := io.ReadAll(r)
	must(t, errors.Join(err, r.Close()))
	return meta, b
}

// receive does to the folder of a node that is down what raft does when a
// snapshot comes, up to a crash before or after it was restored.
func receive(t testing.TB, dir string, meta *raft.SnapshotMeta, b []byte, restore bool) {
	t.Helper()
	s, err := openState(filepath.Join(dir, "state"), testLog(), func(err error) { t.Error(err) })
	must(t, err)
	store, err := newSnapshotStore(filepath.Join(dir, "snapshots"), s)
	must(t, err)
	sink, err := store.Create(1, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, nil)
	must(t, err)
	_, err = sink.Write(b)
	must(t, errors.Join(err, sink.Close()))
	if restore {
		_, r, err := store.Open(sink.ID())
		must(t, err)
		must(t, errors.Join(s.Restore(r), r.Close()))
	}
	must(t, s.close())
}

// reopen opens a folder as a node that belongs to the mesh of like.
func reopen(t testing.TB, like *testNode, dir string) error {
	t.Helper()
	cfg := like.cfg
	cfg.Dir, cfg.Listener, cfg.ID = dir, listen(t), "00000000-0000-4000-8000-000000000009"
	c, err := open(cfg, like.bounds)
	if err != nil {
		return err
	}
	return c.Close()
}

// A snapshot may hold more than its index says: the commands applied between
// raft's Snapshot and Persist.
func TestSnapshotAheadOfItsIndex(t *testing.T) {
	m := newMesh(t)
	n := m.add("z")
	for i := range 20 {
		must(t, n.push("r", "x", i))
	}
	meta, b := latest(t, n)
	meta.Index -= 3
	dir := t.TempDir()
	receive(t, dir, meta, b, true)
	must(t, reopen(t, n, dir))
}

// Raft empties its log after a snapshot that the state was ahead of: the state
// stays as it is, and the node must still start.
func TestLogEmptiedByOlderSnapshot(t *testing.T) {
	m := newMesh(t)
	n := m.add("z")
	for i := range 10 {
		must(t, n.push("r", "x", i))
	}
	meta, older := latest(t, n)
	for i := range 10 {
		must(t, n.push("r", "y", i))
	}
	_, newer := latest(t, n)
	dir := t.TempDir()
	receive(t, dir, meta, older, false)
	s, err := openState(filepath.Join(dir, "state"), testLog(), func(err error) { t.Error(err) })
	must(t, err)
	must(t, s.restore(bytes.NewReader(newer))) // in place of the log that led there
	have := s.applied()
	must(t, s.close())
	if err := reopen(t, n, dir); err == nil {
		t.Fatal("a node that lost its log started")
	}
	logs, err := openLog(filepath.Join(dir, "raft"), newRaftLog(testLog()), n.bounds, func(err error) { t.Error(err) })
	must(t, err)
	logs.applied = func() uint64 { return have }
	for i := range have {
		must(t, logs.StoreLog(logEntry(i+1, raft.LogCommand, 1)))
	}
	must(t, logs.DeleteRange(1, have-1)) // keeps one
	if n, err := logs.emptied(); n != 0 || err != nil {
		t.Errorf("it was not emptied, but noted %d %v", n, err)
	}
	must(t, logs.DeleteRange(have, have))
	must(t, logs.Close())
	must(t, reopen(t, n, dir))
}

// A crash after a snapshot was received and before raft has emptied its log
// leaves a log that ends before the snapshot; the node catches up all the same.
func TestGapAfterSnapshot(t *testing.T) {
	for _, restored := range []bool{false, true} {
		t.Run(fmt.Sprint("restored ", restored), func(t *testing.T) {
			m := newMesh(t)
			m.bounds.trailing = 4
			for range 4 {
				m.add("z")
			}
			m.settle(3)
			leader := m.leader()
			n := m.node(leader.Status().Replicas[0])
			must(t, leader.push("r", "x", 1))
			must(t, n.pull("r", "x", 1))
			n.stop()
			for i := range 50 {
				must(t, leader.push("r", "x", i))
			}
			meta, b := latest(t, leader)
			receive(t, n.dir, meta, b, restored)
			n.start(nil)
			if last, err := n.logs.LastIndex(); err != nil || last != 0 && last < meta.Index {
				t.Fatalf("the log ends at %d, the snapshot at %d (%v)", last, meta.Index, err)
			}
			for i := range 20 {
				must(t, leader.push("r", "x", 100+i))
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := n.state.waitApplied(ctx, leader.state.applied()); err != nil {
				t.Errorf("applied %d of %d: %v", n.state.applied(), leader.state.applied(), err)
			}
			m.equal(t)
		})
	}
}
