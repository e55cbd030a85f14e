package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// take takes a snapshot as raft does.
func take(t testing.TB, store *snapshotStore, r *replica, index uint64) string {
	t.Helper()
	snap, err := r.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	sink := sinkAt(t, store, index)
	if err := errors.Join(snap.Persist(sink), sink.Close()); err != nil {
		t.Fatal(err)
	}
	return sink.ID()
}

func sinkAt(t testing.TB, store *snapshotStore, index uint64) raft.SnapshotSink {
	t.Helper()
	conf := raft.Configuration{Servers: []raft.Server{{ID: "1", Address: "1"}}}
	sink, err := store.Create(1, index, 7, conf, 2, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sink
}

func openStore(t testing.TB, dir string, r *replica) *snapshotStore {
	t.Helper()
	store, err := newSnapshotStore(dir, r.state)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func ids(t testing.TB, store *snapshotStore) string {
	t.Helper()
	list, err := store.List()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, m := range list {
		all = append(all, m.ID)
	}
	return strings.Join(all, " ")
}

// fetch reads a snapshot's stream to its end.
func fetch(t testing.TB, store *snapshotStore, id string) []byte {
	t.Helper()
	meta, rc, err := store.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(rc)
	if err := errors.Join(err, rc.Close()); err != nil {
		t.Fatal(err)
	}
	if meta.Size != int64(len(b)) || meta.ID != id || meta.Term != 7 || len(meta.Configuration.Servers) != 1 || meta.ConfigurationIndex != 2 {
		t.Errorf("%d bytes under %+v", len(b), meta)
	}
	return b
}

func TestSnapshotStore(t *testing.T) {
	r, dir := populated(t), filepath.Join(t.TempDir(), "snapshots")
	store := openStore(t, dir, r)
	first := take(t, store, r, 10)
	at, want := r.sum(), r.stream()
	r.must(command(0, pushed("a", "later")))
	if !bytes.Equal(fetch(t, store, first), want) {
		t.Error("the stream of the snapshot is not that of its state")
	}
	second := take(t, store, r, 20)
	_, reading, err := store.Open(first)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(fetch(t, store, first), want) { // two followers at once
		t.Error("the second stream differs")
	}
	third := take(t, store, r, 30)
	if got := ids(t, store); got != third+" "+second+" "+first {
		t.Errorf("snapshots while one is being read: %s", got)
	}
	other := newReplica(t)
	if err := errors.Join(other.Restore(reading), reading.Close(), reading.Close()); err != nil || other.sum() != at {
		t.Errorf("restored from an old one: %v", err)
	}
	if got := ids(t, store); got != third+" "+second {
		t.Errorf("snapshots after it was read: %s", got)
	}
	again := openStore(t, dir, r)
	fourth := take(t, again, r, 30) // as recovery does
	if got := ids(t, again); got != fourth+" "+third {
		t.Errorf("snapshots after a restart: %s", got)
	}
	if _, _, err := store.Open("7-1-1"); err == nil {
		t.Error("no such snapshot, yet it opens")
	}
}

// TestDurable: a snapshot, after which raft drops entries, makes the state
// durable that they led to, and so does sync, before raft drops more.
func TestDurable(t *testing.T) {
	r := populated(t)
	store := openStore(t, t.TempDir(), r)
	for what, act := range map[string]func(){
		"snapshot": func() { take(t, store, r, r.last) },
		"sync": func() {
			if err := r.sync(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		r.must(command(0, pushed("a", what)))
		act()
		image := t.TempDir()
		copyDir(t, image, r.dir)
		if found := openReplica(t, image); found.applied() != r.last {
			t.Errorf("%s: %d of %d entries are there", what, found.applied(), r.last)
		}
	}
}

// TestRestoreAtStart: raft need not restore what the state holds, and must
// where it does not.
func TestRestoreAtStart(t *testing.T) {
	r, dir := populated(t), t.TempDir()
	expect := func(want bool, s *replica, when string) {
		t.Helper()
		if got, err := openStore(t, dir, s).restoreAtStart(); got != want || err != nil {
			t.Errorf("%s: %v %v", when, got, err)
		}
	}
	expect(false, r, "no snapshot")
	store := openStore(t, dir, r)
	take(t, store, r, 10)
	expect(false, r, "just taken, with raft's own entries after the last command")
	r.must(command(0, pushed("a", "later")))
	expect(false, r, "ahead")
	lost := newReplica(t)
	expect(true, lost, "the state was lost")
	sink := sinkAt(t, openStore(t, dir, lost), 20)
	if _, err := sink.Write(r.stream()); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	expect(true, lost, "received, and then a crash")
	if err := lost.restore(r.stream()); err != nil {
		t.Fatal(err)
	}
	expect(false, lost, "received and restored")
}

func TestReceivedSnapshot(t *testing.T) {
	r, dir := populated(t), t.TempDir()
	good := r.stream()
	store := openStore(t, dir, r)
	for name, stream := range map[string][]byte{
		"nothing": nil, "cut": good[:len(good)/2],
		"foreign": forge(header{cluster: "other"}), "early": forge(header{cluster: "mesh", epoch: 2}),
	} {
		sink := sinkAt(t, store, 10)
		if _, err := io.Copy(sink, bytes.NewReader(stream)); err != nil {
			t.Fatal(err)
		}
		if err := sink.Close(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	cancelled := sinkAt(t, store, 10)
	if _, err := cancelled.Write(good[:9]); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cancelled.Cancel(), cancelled.Cancel()); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	abandoned := sinkAt(t, store, 10).(*snapshotSink) // by a crash
	sink := sinkAt(t, store, 11)
	if n, err := io.Copy(sink, trickle{bytes.NewReader(good)}); n != int64(len(good)) || err != nil {
		t.Fatal(n, err)
	}
	if err := errors.Join(sink.Close(), sink.Close()); err != nil {
		t.Fatal(err)
	}
	store = openStore(t, dir, r)
	if _, err := os.Stat(abandoned.dir); err == nil {
		t.Error("what a crash left is still there")
	}
	if got := ids(t, store); got != sink.ID() {
		t.Errorf("snapshots: %s", got)
	}
	if !bytes.Equal(fetch(t, store, sink.ID()), good) {
		t.Error("another stream than was received")
	}
	if err := os.WriteFile(filepath.Join(dir, sink.ID(), metaFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ids(t, store); got != "" {
		t.Errorf("a damaged one is listed: %s", got)
	}
}

// trickle gives few bytes at a time.
type trickle struct{ r io.Reader }

func (r trickle) Read(p []byte) (int, error) { return r.r.Read(p[:min(len(p), 7)]) }

// TestRaft has raft itself carry a state to a node that has none, and start
// again over what is there.
func TestRaft(t *testing.T) {
	leader, follower := newRaftNode(t, "1"), newRaftNode(t, "2")
	leader.trans.Connect("2", follower.trans)
	follower.trans.Connect("1", leader.trans)
	leader.start()
	boot := raft.Configuration{Servers: []raft.Server{{ID: "1", Address: "1"}}}
	if err := leader.raft.BootstrapCluster(boot).Error(); err != nil {
		t.Fatal(err)
	}
	<-leader.raft.LeaderCh()
	apply := func(cmd *wire.Command) {
		t.Helper()
		f := leader.raft.Apply(encoded(t, cmd), time.Minute)
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		if res := f.Response().(*applyResult); res.err != nil {
			t.Fatal(res.err)
		}
	}
	apply(command(0, founded(joined("1", "n", "k"), true)))
	for i := range 50 {
		apply(command(i, imageOf("repo", fmt.Sprint(i), []string{"latest"})))
	}
	if err := leader.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if first, err := leader.log.FirstIndex(); err != nil || first < 40 {
		t.Fatalf("the log still begins at %d: %v", first, err)
	}
	apply(command(60, imageOf("repo", "after", []string{"latest"})))

	follower.start()
	if err := leader.raft.AddNonvoter("2", "2", 0, time.Minute).Error(); err != nil {
		t.Fatal(err)
	}
	apply(command(61, imageOf("repo", "joined", []string{"latest"})))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := follower.waitApplied(ctx, leader.applied()); err != nil {
		t.Fatal(err)
	}
	want := leader.sum()
	if follower.sum() != want {
		t.Error("the states differ")
	}
	if list, err := follower.store.List(); err != nil || len(list) == 0 {
		t.Errorf("the follower got no snapshot: %v", err)
	}

	follower.stop()
	follower.restart()
	follower.start()
	if follower.sum() != want {
		t.Error("the follower's state differs after a restart")
	}
	follower.stop()
	follower.close()
	if err := os.RemoveAll(follower.dir); err != nil {
		t.Fatal(err)
	}
	follower.restart()
	follower.start()
	if err := follower.waitApplied(ctx, leader.applied()); err != nil {
		t.Fatal(err)
	}
	if follower.sum() != want {
		t.Error("the follower's state differs after it was lost")
	}
}

type raftNode struct {
	*replica
	id    string
	store *snapshotStore
	snaps string
	log   *raft.InmemStore
	trans *raft.InmemTransport
	raft  *raft.Raft
}

func newRaftNode(t testing.TB, id string) *raftNode {
	n := &raftNode{replica: newReplica(t), id: id, snaps: t.TempDir(), log: raft.NewInmemStore()}
	_, n.trans = raft.NewInmemTransport(raft.ServerAddress(id))
	t.Cleanup(n.stop)
	return n
}

func (n *raftNode) start() {
	n.t.Helper()
	n.store = openStore(n.t, n.snaps, n.replica)
	restore, err := n.store.restoreAtStart()
	if err != nil {
		n.t.Fatal(err)
	}
	conf := raft.DefaultConfig()
	conf.LocalID, conf.LogOutput, conf.BatchApplyCh = raft.ServerID(n.id), io.Discard, true
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 300*time.Millisecond, 300*time.Millisecond, 200*time.Millisecond
	conf.TrailingLogs, conf.NoSnapshotRestoreOnStart = 5, !restore
	if n.raft, err = raft.NewRaft(conf, n.state, n.log, n.log, n.store, n.trans); err != nil {
		n.t.Fatal(err)
	}
}

func (n *raftNode) stop() {
	if n.raft != nil {
		if err := n.raft.Shutdown().Error(); err != nil {
			n.t.Error(err)
		}
		n.raft = nil
	}
}
