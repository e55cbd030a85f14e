package metadata

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/flotilla-registry/flotilla/api/oci"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A mesh of one takes a write as soon as it is open, and finds all of it again.
func TestMeshOfOne(t *testing.T) {
	m := newMesh(t)
	n := m.add("z")
	if got := n.Cluster(); got.Replicas != 3 || got.ID == "" {
		t.Errorf("settings %+v", got)
	}
	for i := range 20 {
		must(t, n.push("a/b", fmt.Sprint("v", i), i))
	}
	before, err := n.state.hash()
	must(t, err)
	n.stop()
	n.start(&Cluster{ID: "another"}) // is ignored: there is a mesh in the folder
	for i := range 20 {
		must(t, n.pull("a/b", fmt.Sprint("v", i), i))
	}
	after, err := n.state.hash()
	must(t, err)
	if string(before) != string(after) {
		t.Error("the state changed over a restart")
	}
	must(t, n.push("a/b", "v0", 99))
	must(t, n.pull("a/b", "v0", 99))
	if rounds := n.Status().ReadRounds; rounds == 0 {
		t.Error("no read was proven")
	}
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
}

// Entries whose effects the state lost, as in a power cut, are applied again.
func TestReplay(t *testing.T) {
	m := newMesh(t)
	n := m.add("z")
	for i := range 10 {
		must(t, n.push("r", fmt.Sprint(i), i))
	}
	before, err := n.state.hash()
	must(t, err)
	n.stop()
	must(t, removeAll(n.dir, "state"))
	n.start(nil)
	must(t, n.Writable(context.Background()))
	after, err := n.state.hash()
	must(t, err)
	if string(before) != string(after) {
		t.Error("another state came out of the same log")
	}
}

// A node whose log was lost while its state was not must not take part: it
// might vote for a leader that lacks what it once acknowledged.
func TestLostLog(t *testing.T) {
	m := newMesh(t)
	n := m.add("z")
	must(t, n.push("r", "x", 1))
	n.stop()
	must(t, removeAll(n.dir, "raft"))
	cfg := n.cfg
	cfg.Listener = listen(t)
	if c, err := Open(cfg); err == nil {
		c.Close()
		t.Fatal("a node without its log started")
	}
}

func TestThreeNodes(t *testing.T) {
	m := grow(t, 3, 3)
	leader := m.leader()

	t.Run("a moved tag is seen by the next request anywhere", func(t *testing.T) {
		for i := range 1000 {
			writer, reader := m.nodes[i%3], m.nodes[(i+1+i/3%2)%3]
			must(t, writer.push("moving", "latest", i))
			must(t, reader.pull("moving", "latest", i))
		}
	})
	t.Run("what is deleted is gone everywhere", func(t *testing.T) {
		for i := range 20 {
			writer, reader := m.nodes[i%3], m.nodes[(i+1)%3]
			img, _ := image(i)
			must(t, writer.push("going", "x", i))
			must(t, reader.pull("going", "x", i))
			everywhere, err := writer.DeleteManifest(context.Background(), "going", img.Digest)
			must(t, err)
			if !everywhere {
				t.Fatal("not deleted everywhere")
			}
			for _, n := range m.nodes { // the local state alone, which is what a read by digest sees
				if _, ok, err := n.state.manifest("going", img.Digest); ok || err != nil {
					t.Fatalf("%s still has it (%v)", n.id, err)
				}
			}
			_, err = reader.Manifest(context.Background(), "going", oci.Reference{Tag: "x"})
			if !errors.Is(err, oci.ErrManifestUnknown) && !errors.Is(err, oci.ErrNameUnknown) {
				t.Fatalf("the tag is answered with %v", err)
			}
		}
	})
	t.Run("a miss by digest is proven", func(t *testing.T) {
		for _, n := range m.nodes {
			before := n.Status().ReadRounds
			_, err := n.Blob(context.Background(), "r", digest.FromString("nothing"))
			if !errors.Is(err, oci.ErrBlobUnknown) || n.Status().ReadRounds == before {
				t.Errorf("%v after %d rounds", err, n.Status().ReadRounds-before)
			}
		}
	})
	t.Run("one proof does for many reads", func(t *testing.T) {
		img, _ := image(7)
		must(t, m.nodes[0].push("r", "seven", 7))
		for _, n := range m.nodes {
			must(t, n.Sync(context.Background()))
			before := n.Status().ReadRounds
			_, err := n.ManifestHere("r", img.Digest)
			must(t, err)
			for _, b := range img.Blobs {
				_, err := n.BlobHere("r", b.Digest)
				must(t, err)
			}
			_, noManifest := n.ManifestHere("r", digest.FromString("nothing"))
			_, noBlob := n.BlobHere("r", digest.FromString("nothing"))
			if !errors.Is(noManifest, oci.ErrManifestUnknown) || !errors.Is(noBlob, oci.ErrBlobUnknown) {
				t.Errorf("misses are %v and %v", noManifest, noBlob)
			}
			if rounds := n.Status().ReadRounds - before; rounds != 0 {
				t.Errorf("%d more rounds", rounds)
			}
		}
	})
	t.Run("a refusal by Apply reaches the caller at any node", func(t *testing.T) {
		for _, n := range m.nodes {
			missing := digest.FromString("missing")
			img, body := image(1)
			img.Blobs = []oci.Descriptor{{Digest: missing, Size: 1}}
			err := n.PutManifest(context.Background(), Put{Repo: "r", Manifest: img, Body: body})
			var e *oci.Error
			if !errors.As(err, &e) || e.Kind != oci.ErrManifestBlobUnknown.Kind || e.Detail == nil {
				t.Errorf("%v", err)
			}
		}
	})
	t.Run("a name is taken once, and an unchanged announcement is no entry", func(t *testing.T) {
		thief := m.nodes[1].member()
		thief.ID, thief.Key = "33333333-0000-4000-8000-000000000000", m.nodes[2].member().Key
		if err := m.nodes[2].Join(context.Background(), thief); !errors.Is(err, oci.ErrDenied) {
			t.Errorf("a taken name: %v", err)
		}
		before := leader.Status().Proposals
		must(t, m.nodes[2].Join(context.Background(), m.nodes[2].member()))
		if now := leader.Status().Proposals; now != before {
			t.Errorf("%d entries for nothing", now-before)
		}
	})
	t.Run("a burst of many batches is not held up", func(t *testing.T) {
		var writers sync.WaitGroup
		for i := range 400 {
			writers.Go(func() {
				if err := m.nodes[i%2].push("burst", fmt.Sprint(i), i); err != nil {
					t.Error(err)
				}
			})
		}
		writers.Wait()
		for _, n := range m.nodes {
			must(t, n.pull("burst", "399", 399))
		}
	})
	t.Run("all replicas are equal", func(t *testing.T) { m.equal(t) })
	t.Run("reads make no entries", func(t *testing.T) {
		eventually(t, "the last Barrier", func() error {
			if s := leader.Status(); len(leader.pulses) > 0 || leader.raft.LastIndex() != s.Applied {
				return errors.New("something is under way")
			}
			return nil
		})
		last, rounds := leader.raft.LastIndex(), leader.Status().ReadRounds
		for range 3 {
			must(t, leader.Writable(context.Background()))
		}
		if leader.raft.LastIndex() != last || leader.Status().ReadRounds < rounds+3 {
			t.Errorf("reads made %d entries", leader.raft.LastIndex()-last)
		}
	})
}

// equal compares the replicas once they have applied the same.
func (m *testMesh) equal(t *testing.T) {
	t.Helper()
	for _, n := range m.running() {
		must(t, n.Writable(context.Background()))
	}
	var first []byte
	for _, n := range m.running() {
		h, err := n.state.hash()
		must(t, err)
		if first == nil {
			first = h
		}
		if string(h) != string(first) {
			t.Errorf("%s differs", n.id)
		}
	}
}

// The leader goes in the middle of many writers: what was acknowledged is
// there, and writes go on.
func TestLeaderGone(t *testing.T) {
	m := grow(t, 3, 3)
	leader := m.leader()
	var others []*testNode
	for _, n := range m.nodes {
		if n != leader {
			others = append(others, n)
		}
	}
	var done atomic.Int64  // acknowledged
	last := make([]int, 8) // acknowledged image of each writer's tag
	stop := meanwhile(t, len(last), func(w int) bool {
		if err := others[w%2].push("r", fmt.Sprint("w", w), w*100000+last[w]+1); err != nil {
			t.Errorf("writer %d: %v", w, err)
			return false
		}
		last[w]++
		done.Add(1)
		return true
	})
	reach := func(n int64) func() error {
		return func() error {
			if got := done.Load(); got < n {
				return fmt.Errorf("%d writes of %d", got, n)
			}
			return nil
		}
	}
	eventually(t, "writes before", reach(50))
	leader.stop()
	eventually(t, "writes after", reach(done.Load()+100))
	stop()
	for w, i := range last {
		for _, n := range others {
			must(t, n.pull("r", fmt.Sprint("w", w), w*100000+i))
		}
	}
	leader.start(nil)
	for w, i := range last {
		eventually(t, "the old leader to come back", func() error { return leader.pull("r", fmt.Sprint("w", w), w*100000+i) })
	}
	m.equal(t)
}

// A leader that is cut off from the other voters must not confirm a read, not
// even with replicas at its side that still follow it; raft's VerifyLeader does.
func TestIsolatedLeader(t *testing.T) {
	m := newMesh(t)
	m.timing.Election = 2 * time.Second // its lease must outlast the test, so that the proof alone says no
	for range 5 {
		m.add("z")
	}
	m.settle(3)
	leader := m.leader()
	must(t, leader.push("r", "x", 1))
	var with, against []*testNode
	for _, n := range m.nodes {
		switch {
		case n == leader:
		case contains(leader.Status().Replicas, n.id):
			with = append(with, n)
		default:
			against = append(against, n)
		}
	}
	if len(with) != 2 || len(against) != 2 {
		t.Fatalf("%d replicas, %d voters", len(with), len(against))
	}
	m.part(append(with, leader), against, true)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if index, err := leader.proofs.join(ctx); err == nil {
		t.Errorf("the isolated leader confirmed entry %d", index)
	}
	if leader.Status().State != "leader" {
		t.Log("it had stepped down already")
	}
	for _, n := range with {
		if err := n.Writable(ctx); err == nil {
			t.Error("its replica was proven current")
		}
	}
	// Meanwhile the majority goes on, and once healed all agree.
	must(t, against[0].push("r", "x", 2))
	m.part(append(with, leader), against, false)
	for _, n := range m.nodes {
		eventually(t, "all to see it", func() error { return n.pull("r", "x", 2) })
	}
}

// The same request, proposed twice, is one write: another client's write in
// between stays.
func TestRetryIsOneWrite(t *testing.T) {
	m := grow(t, 3, 3)
	n := m.follower()
	ctx := context.Background()
	img, body := image(1)
	first := manifestOp(Put{Repo: "r", Tags: []string{"x"}, Manifest: img, Body: body})
	first.Version, first.RequestId = 1, "the same"
	out, err := n.propose(ctx, first)
	must(t, err)
	must(t, n.push("r", "x", 2))
	again, err := n.propose(ctx, first)
	must(t, err)
	if again.Index <= out.Index {
		t.Errorf("the retry is entry %d, the first %d", again.Index, out.Index)
	}
	must(t, n.pull("r", "x", 2))
}

// With the quorum gone, what is known is served and says how old it may be;
// what is not known is not denied; writes are refused.
func TestQuorumGone(t *testing.T) {
	m := newMesh(t)
	m.timing.Proof = 300 * time.Millisecond
	for range 3 {
		m.add("z")
	}
	m.settle(3)
	must(t, m.nodes[0].push("r", "x", 1))
	for _, n := range m.nodes {
		must(t, n.pull("r", "x", 1))
	}
	last := m.nodes[2]
	m.part([]*testNode{m.nodes[0], m.nodes[1]}, []*testNode{last}, true)
	eventually(t, "the last to notice", func() error {
		if s := last.Status(); s.Leader != "" {
			return fmt.Errorf("it follows %s", s.Leader)
		}
		return nil
	})
	ctx := context.Background()
	got, err := last.Manifest(ctx, "r", oci.Reference{Tag: "x"})
	must(t, err)
	if !got.Degraded || got.Age <= 0 || got.Age > patience {
		t.Errorf("freshness %+v", got.Freshness)
	}
	tags, err := last.Tags(ctx, "r", Page{N: -1})
	must(t, err)
	if !tags.Degraded || len(tags.Items) != 1 {
		t.Errorf("tags %+v", tags)
	}
	img, _ := image(1)
	if got, err := last.Manifest(ctx, "r", oci.Reference{Digest: img.Digest}); err != nil || got.Degraded {
		t.Errorf("by digest: %+v, %v", got.Freshness, err)
	}
	for what, ref := range map[string]oci.Reference{"tag": {Tag: "unknown"}, "digest": {Digest: digest.FromString("unknown")}} {
		if _, err := last.Manifest(ctx, "r", ref); !errors.Is(err, oci.ErrUnavailable) {
			t.Errorf("an unknown %s is answered with %v", what, err)
		}
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	img, body := image(2)
	if err := last.PutManifest(short, Put{Repo: "r", Manifest: img, Body: body}); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("a write is answered with %v", err)
	}
	began := time.Now() // nobody took it, so there is no doubt to sit out
	if err := last.PutManifest(ctx, Put{Repo: "r", Manifest: img, Body: body}); !errors.Is(err, oci.ErrUnavailable) || time.Since(began) >= writeTime {
		t.Errorf("a write without an end was answered with %v after %v", err, time.Since(began))
	}
	last.cfg.TagReads = Strict
	if _, err := last.Manifest(ctx, "r", oci.Reference{Tag: "x"}); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("a strict read is answered with %v", err)
	}
	last.cfg.TagReads = Local
	if got, err := last.Manifest(ctx, "r", oci.Reference{Tag: "x"}); err != nil || got.Degraded {
		t.Errorf("a local read is answered with %+v, %v", got.Freshness, err)
	}
	last.cfg.TagReads = Linearizable
	m.part([]*testNode{m.nodes[0], m.nodes[1]}, []*testNode{last}, false)
	eventually(t, "fresh reads again", func() error { return last.pull("r", "x", 1) })
}

// A delete waits for every member that seems alive, and says so where one of
// them does not answer.
func TestDeleteEverywhere(t *testing.T) {
	m := grow(t, 3, 3)
	leader := m.leader()
	must(t, leader.push("r", "x", 1))
	gone := m.follower()
	gone.stop()
	everywhere, err := leader.DeleteTag(context.Background(), "r", "x")
	must(t, err)
	if !everywhere {
		t.Error("a member that gossip shows gone was waited for")
	}
	must(t, leader.push("r", "x", 1))
	m.mu.Lock()
	m.ghost = gone.id
	m.mu.Unlock()
	everywhere, err = leader.DeleteTag(context.Background(), "r", "x")
	must(t, err)
	if everywhere {
		t.Error("a member that does not answer has applied it")
	}
}

func TestStepDown(t *testing.T) {
	m := grow(t, 3, 3)
	leader := m.leader()
	term := leader.Status().Term
	must(t, leader.StepDown(context.Background()))
	next := m.leader()
	if next == leader || next.Status().Term <= term {
		t.Errorf("%s led term %d, %s leads %d", leader.id, term, next.id, next.Status().Term)
	}
	must(t, leader.StepDown(context.Background())) // nothing to hand over
	must(t, leader.push("r", "x", 1))
	must(t, next.pull("r", "x", 1))
}

// A mesh of two has one voter, and the other is a replica that serves.
func TestMeshOfTwo(t *testing.T) {
	m := newMesh(t)
	first := m.add("z")
	must(t, first.push("r", "x", 1))
	second := m.add("z")
	m.settle(1)
	must(t, second.pull("r", "x", 1))
	must(t, second.push("r", "x", 2))
	must(t, first.pull("r", "x", 2))
	if s := first.Status(); len(s.Voters) != 1 || s.Voters[0] != first.id || len(s.Replicas) != 1 {
		t.Errorf("%+v", s)
	}
	// The founder restarts: nobody else could lead, so it does at once.
	first.stop()
	first.start(nil)
	must(t, first.push("r", "x", 3))
	eventually(t, "the replica to follow again", func() error { return second.pull("r", "x", 3) })
}

// Everything ends with Close, whatever it waits for.
func TestClose(t *testing.T) {
	m := grow(t, 3, 3)
	n := m.follower()
	for _, o := range m.nodes {
		if o != n {
			m.part([]*testNode{o}, []*testNode{n}, true)
		}
	}
	var waiting sync.WaitGroup
	waiting.Go(func() {
		if err := n.push("r", "x", 1); !errors.Is(err, oci.ErrUnavailable) {
			t.Errorf("a write that was waiting: %v", err)
		}
	})
	waiting.Go(func() {
		if err := n.Writable(context.Background()); !errors.Is(err, oci.ErrUnavailable) {
			t.Errorf("a proof that was waiting: %v", err)
		}
	})
	n.stop()
	waiting.Wait()
	must(t, n.Close()) // again
	if err := n.push("r", "x", 1); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("a write after: %v", err)
	}
	if _, err := n.Blob(context.Background(), "r", digest.FromString("x")); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("a read after: %v", err)
	}
}
