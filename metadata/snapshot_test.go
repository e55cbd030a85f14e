package metadata

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// populated is a state with a record of every kind.
func populated(t testing.TB) *replica {
	r := newReplica(t)
	once := command(0, pushed("a/b", "blob"))
	once.RequestId = "request"
	r.must(
		command(0, founded(joined("1", "n", "k"), false)), once,
		command(0, imageOf("a/b", "m", []string{"v1", "v2"}, "blob")),
		command(0, referring(imageOf("a/b", "s", nil), "m", "sbom")),
		command(0, &wire.Member{Id: "2", Removed: true}),
	)
	return r
}

func (r *replica) restore(b []byte) error { return r.Restore(io.NopCloser(bytes.NewReader(b))) }

// forge makes a stream of records, key after value, that is sound in all but
// what it says.
func forge(h header, records ...string) []byte {
	b := preamble(h)
	for _, s := range records {
		b = appendString(b, s)
	}
	b = binary.BigEndian.AppendUint64(append(b, 0), uint64(len(records)/2))
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// recount makes a forged stream count n records.
func recount(b []byte, n uint64) []byte {
	b = binary.BigEndian.AppendUint64(b[:len(b)-streamTail], n)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func TestStream(t *testing.T) {
	r := populated(t)
	b := r.stream()
	if size, err := streamSize(r.db); err != nil || size != int64(len(b)) {
		t.Errorf("size %d %v, want %d", size, err, len(b))
	}
	d, err := newDecoder(bytes.NewReader(b))
	if err != nil || d.header != (header{"mesh", 3, 5, 1}) {
		t.Fatalf("header %+v %v", d, err)
	}
	other := newReplica(t)
	told := 0
	other.onMembers(func() { told = len(other.members()) })
	if err := other.restore(b); err != nil {
		t.Fatal(err)
	}
	if other.sum() != r.sum() || other.applied() != 5 || told != 1 || other.receipts.len() != 1 {
		t.Errorf("restored: %d applied, %d members, %d receipts", other.applied(), told, other.receipts.len())
	}
	if !bytes.Equal(other.stream(), b) {
		t.Error("the restored state has another stream")
	}
	other.restart()
	if other.sum() != r.sum() {
		t.Error("the restored state did not outlive a restart")
	}
	empty := newReplica(t)
	if err := empty.restore(newReplica(t).stream()); err != nil || empty.applied() != 0 {
		t.Errorf("nothing restored: %v", err)
	}
}

// TestDamagedStream: no cut and no flipped bit goes unnoticed.
func TestDamagedStream(t *testing.T) {
	b := populated(t).stream()
	whole := func(b []byte) error {
		d, err := newDecoder(bytes.NewReader(b))
		if err != nil {
			return err
		}
		return d.drain()
	}
	if err := whole(b); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		if err := whole(b[:i]); !errors.Is(err, errStream) {
			t.Fatalf("cut at %d: %v", i, err)
		}
		b[i] ^= 1 << (i % 8)
		if err := whole(b); !errors.Is(err, errStream) {
			t.Fatalf("flipped at %d: %v", i, err)
		}
		b[i] ^= 1 << (i % 8)
	}
}

// TestRefusedStream: what is not this mesh's state, or not a state, changes
// nothing.
func TestRefusedStream(t *testing.T) {
	r := populated(t)
	good, want := r.stream(), r.sum()
	at := header{"mesh", 3, 9, 2}
	cluster := string(encodeCluster(Cluster{ID: "mesh", Epoch: 3, Replicas: 3}))
	progressed := string(progress{9, 2, epoch}.encode())
	long := string(bytes.Repeat([]byte{keyMember}, maxKey+1))
	for _, row := range []struct {
		name   string
		stream []byte
		want   error
	}{
		{"nothing", nil, errStream},
		{"cut short", good[:len(good)-1], errStream},
		{"more than a stream", append(bytes.Clone(good), 0), errStream},
		{"another format", append([]byte("flotilla\x02"), good[9:]...), errStream},
		{"another mesh", forge(header{cluster: "other", epoch: 9, index: 9, term: 2}), errForeign},
		{"no mesh", forge(header{index: 9, term: 2}), errForeign},
		{"before recovery", forge(header{"mesh", 2, 9, 2}), errForeign},
		{"another header", forge(header{"mesh", 3, 8, 2}, "\x01", progressed, "\x02", cluster), errStream},
		{"no records", forge(at), errStream},
		{"out of order", forge(at, "\x02", cluster, "\x01", progressed), errStream},
		{"twice", forge(at, "\x01", progressed, "\x01", progressed, "\x02", cluster), errStream},
		{"fewer than counted", recount(forge(at, "\x01", progressed, "\x02", cluster), 3), errStream},
		{"unknown kind", forge(at, "\x01", progressed, "\x02", cluster, "\x05x", ""), errStream},
		{"long key", forge(at, "\x01", progressed, "\x02", cluster, long, ""), errStream},
		{"damaged progress", forge(at, "\x01", "\xff", "\x02", cluster), errRecord},
		{"damaged member", forge(at, "\x01", progressed, "\x02", cluster, "\x03x", "\x00\x09"), errRecord},
		{"damaged receipt", forge(at, "\x01", progressed, "\x02", cluster, "\x04x", "\x00"), errRecord},
		{"endless length", append(preamble(at), bytes.Repeat([]byte{0xff}, 64)...), errStream},
		{"long value", append(preamble(at), append([]byte("\x01\x01"), binary.AppendUvarint(nil, maxValue+1)...)...), errStream},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := r.restore(row.stream); !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
			if r.sum() != want || len(r.fatal) > 0 {
				t.Errorf("the state has changed, or ended: %v", r.fatal)
			}
			if left, _ := filepath.Glob(filepath.Join(r.dir, "db-*")); len(left) != 1 {
				t.Errorf("left over: %v", left)
			}
		})
	}
	recovered := forge(header{"mesh", 4, 9, 2}, "\x01", progressed, "\x02", string(encodeCluster(Cluster{ID: "mesh", Epoch: 4, Replicas: 3})))
	if err := r.restore(recovered); err != nil || r.cluster().Epoch != 4 {
		t.Errorf("after recovery: %v, epoch %d", err, r.cluster().Epoch)
	}
}

// TestRestoreCrash: a process that ends at any step of Restore leaves the old
// state or the new one.
func TestRestoreCrash(t *testing.T) {
	b := populated(t)
	b.must(command(0, pushed("a", "new")))
	stream, after := b.stream(), b.sum()
	r := populated(t)
	before := r.sum()
	if err := r.sync(); err != nil { // what is not synced, a crash may take
		t.Fatal(err)
	}
	images := map[string]string{} // step to copy of the folder
	r.atStep = func(step string) {
		images[step] = t.TempDir()
		copyDir(t, images[step], r.dir)
	}
	if err := r.restore(stream); err != nil {
		t.Fatal(err)
	}
	for step, want := range map[string]string{
		"opened": before, "written": before, "built": before, "switched": after, "swapped": after,
	} {
		if images[step] == "" {
			t.Errorf("no step %q", step)
			continue
		}
		found := openReplica(t, images[step])
		if found.sum() != want {
			t.Errorf("%s: neither the state before nor the state after", step)
		}
		if err := found.restore(stream); err != nil || found.sum() != after {
			t.Errorf("%s: the next attempt: %v", step, err)
		}
		if left, _ := filepath.Glob(filepath.Join(found.dir, "db-*")); len(left) != 1 {
			t.Errorf("%s: left over: %v", step, left)
		}
	}
}

func copyDir(t testing.TB, to, from string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// TestReadsDuringRestore: readers see the old state or the new, and no error.
func TestReadsDuringRestore(t *testing.T) {
	r := populated(t)
	stream := r.stream()
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				d, ok, err := r.tag("a/b", "v1")
				if !ok || err != nil || d != digest.FromString("m") {
					t.Errorf("tag: %v %v %v", d, ok, err)
					return
				}
				if items, more, err := r.repositories(Page{N: 1}); err != nil || more || len(items) != 1 {
					t.Errorf("repositories: %v %v", items, err)
					return
				}
			}
		})
	}
	for range 5 {
		if err := r.restore(stream); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	readers.Wait()
}

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
	if err := leader.raft.AddVoter("2", "2", 0, time.Minute).Error(); err != nil {
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
