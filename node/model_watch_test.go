package node

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/node/disk"
)

// watchedDisk is a member's disk, which tells the model which copies were
// marked used, and lets it look at each that a pass removes. It changes nothing
// but that time passes between a decision and its deed.
type watchedDisk struct {
	*disk.Store
	p *modelPeer
}

func (w watchedDisk) Touch(d digest.Digest) (int64, bool) {
	before := time.Now()
	size, held := w.Store.Touch(d)
	if held {
		w.p.m.mark(w.p, d, before)
	}
	return size, held
}

func (w watchedDisk) Put(ctx context.Context, d digest.Digest, size int64, r io.Reader) error {
	before := time.Now()
	err := w.Store.Put(ctx, d, size, r)
	if err == nil {
		w.p.m.mark(w.p, d, before)
	}
	return err
}

func (w watchedDisk) Finish(ctx context.Context, u oci.Upload, off int64, r io.Reader, d digest.Digest) (int64, error) {
	before := time.Now()
	size, err := w.Store.Finish(ctx, u, off, r, d)
	if err == nil {
		w.p.m.mark(w.p, d, before)
	}
	return size, err
}

func (w watchedDisk) Remove(d digest.Digest, cutoff time.Time) (bool, error) {
	m := w.p.m
	m.mu.Lock()
	surplus := w.p.now.named[d]
	m.mu.Unlock()
	if surplus && (m.chance(2) || m.churning.Load() && m.number(2) == 0) {
		m.upset(w.p, d)
	}
	m.dawdle(4)
	m.mu.Lock()
	mark, pass := w.p.marks[d], w.p.now
	m.mu.Unlock()
	removed, err := w.Store.Remove(d, cutoff)
	if removed {
		m.removed(w.p, d, cutoff, mark, pass)
	}
	return removed, err
}

// watchedNames is a member's catalogue as its passes see it. Time passes behind
// each look at it.
type watchedNames struct {
	names
	p *modelPeer
}

func (w watchedNames) Sync(ctx context.Context) (time.Time, error) {
	w.p.m.mu.Lock()
	w.p.now.began = time.Now() // the cutoff was taken before
	w.p.m.mu.Unlock()
	at, err := w.names.Sync(ctx)
	if err == nil && w.p.m.chance(4) && w.p.m.delay(w.p) {
		w.p.dimmed = true // what is named from now on this pass does not see
		w.p.m.wait(1000)
	}
	w.p.m.dawdle(4)
	return at, err
}

func (w watchedNames) Wanted(after digest.Digest, n int) ([]mesh.Wanted, error) {
	list, err := w.names.Wanted(after, n)
	w.p.m.mu.Lock()
	for _, v := range list {
		w.p.now.named[v.Digest] = true
	}
	w.p.m.mu.Unlock()
	w.p.m.dawdle(4)
	return list, err
}

func (w watchedNames) Referenced(ds []digest.Digest) ([]bool, error) {
	list, err := w.names.Referenced(ds)
	if err == nil {
		w.p.m.mu.Lock()
		for i, d := range ds {
			if list[i] {
				w.p.now.named[d] = true
			}
		}
		w.p.m.mu.Unlock()
	}
	w.p.m.dawdle(4)
	return list, err
}

func (w watchedNames) Lost(ctx context.Context, d digest.Digest, since time.Time) error {
	w.p.m.mu.Lock()
	began := w.p.now.began
	w.p.m.mu.Unlock()
	err := w.names.Lost(ctx, d, since)
	if err == nil {
		w.p.m.lost(w.p, d, began)
	}
	return err
}

// slowBlobs is the bytes as the API of a member sees them. Time passes between
// the bytes of a push and their name, at times so much that they go.
type slowBlobs struct {
	*mesh.Blobs
	p *modelPeer
}

func (s slowBlobs) Put(ctx context.Context, d digest.Digest, size int64, r io.Reader) error {
	err := s.Blobs.Put(ctx, d, size, r)
	s.p.m.dawdle(2)
	s.p.m.sleep(16)
	return err
}

// Renew is asked only where a name was refused.
func (s slowBlobs) Renew(ctx context.Context, d digest.Digest) error {
	s.p.m.overdue.Add(1)
	err := s.Blobs.Renew(ctx, d)
	s.p.m.note(d, "overdue, and placed again at %s: %v", s.p.short(), err)
	return err
}

func (s slowBlobs) Finish(ctx context.Context, u oci.Upload, off int64, r io.Reader, d digest.Digest) (int64, error) {
	size, err := s.Blobs.Finish(ctx, u, off, r, d)
	s.p.m.dawdle(2)
	s.p.m.sleep(16)
	return size, err
}

// mark notes that p vouched for its copy of d.
func (m *model) mark(p *modelPeer, d digest.Digest, before time.Time) {
	m.mu.Lock()
	p.marks[d] = modelMark{before, time.Now()}
	m.mu.Unlock()
	m.note(d, "marked at %s", p.short())
}

// forget notes that p's copy of d is gone.
func (m *model) forget(p *modelPeer, d digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(p.marks, d)
}

// removed holds against the rules that a pass of p removed its copy of d, whose
// mark was read just before.
//
//   - No copy goes that was marked used since the cutoff by which it goes.
//   - As garbage no copy goes of a blob that the log's head names, if the name
//     was given before the pass began, or if the copy was marked used less than
//     the grace before that.
//   - For surplus copies as many stay as a push makes durable.
//   - The last copy of a named blob never goes.
func (m *model) removed(p *modelPeer, d digest.Digest, cutoff time.Time, mark modelMark, pass modelPass) {
	m.mu.Lock()
	if p.marks[d] == mark {
		delete(p.marks, d)
	}
	names := m.namesOf(d)
	m.mu.Unlock()
	how := "as garbage"
	if pass.named[d] {
		how = "as surplus"
	}
	m.note(d, "removed at %s %s, left at %v", p.short(), how, m.holders(d))
	if mark.before.After(cutoff) {
		m.violated(d, "removed at %s %s: the copy was used %v after the cutoff", p.short(), how, mark.before.Sub(cutoff))
	}
	head, named := m.headNames(d)
	if !named {
		return
	}
	m.suffice(d, m.enough(d), fmt.Sprintf("removed at %s %s", p.short(), how))
	if pass.named[d] {
		return
	}
	if mark.before.After(pass.began.Add(-m.grace)) {
		m.violated(d, "removed at %s as garbage: the copy was used %v before the pass began", p.short(), pass.began.Sub(mark.before))
	}
	for _, n := range names {
		if n.pending == 0 && n.given.Before(pass.began) && m.stands(head, n) {
			m.violated(d, "removed at %s as garbage: it was named in %s %v before the pass began", p.short(), n.repo, pass.began.Sub(n.given))
		}
	}
}

// left holds against the rules that p left the mesh and took its copy of d
// along.
func (m *model) left(p *modelPeer, d digest.Digest) {
	m.note(d, "went with %s, left at %v", p.short(), m.holders(d))
	if _, named := m.headNames(d); named {
		m.suffice(d, m.enough(d), p.short()+" found it elsewhere and left the mesh")
	}
}

// suffice holds against the rules that too few copies are left of d, which the
// log's head names: what happened tells why. They are counted only now, as it
// may be named since; and it must be named still.
func (m *model) suffice(d digest.Digest, enough int, what string) {
	left := m.holders(d)
	if len(left) >= enough {
		return
	}
	if _, named := m.headNames(d); named {
		m.violated(d, "%s: %d copies of it are left", what, len(left))
	}
}

// enough returns how many copies of a named blob there must be: as many as a
// push makes durable. The model may have damaged one, or broken its promises.
func (m *model) enough(d digest.Digest) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.exempt(d):
		return 0
	case m.damaged[d]:
		return 1
	}
	return min(2, m.rosters[len(m.rosters)-1].replicas)
}

// lost holds against the rules that a pass of p, begun then, had d recorded as
// lost: no member of the mesh may have held it all the time.
func (m *model) lost(p *modelPeer, d digest.Digest, began time.Time) {
	m.note(d, "recorded as lost by %s", p.short())
	m.lostEver.Add(1)
	for _, o := range m.peers {
		m.mu.Lock()
		mark, held := o.marks[d]
		m.mu.Unlock()
		if held && mark.after.Before(began) && o.store.Has(d) {
			m.violated(d, "recorded as lost by %s, and %s holds it since before the search began", p.short(), o.short())
		}
	}
}

// holders returns who holds d durably.
func (m *model) holders(d digest.Digest) (ids []string) {
	for _, p := range m.peers {
		if p.store.Has(d) {
			ids = append(ids, p.short())
		}
	}
	return ids
}

// head returns a member whose replica holds all that was committed before the
// call; nil where that could not be had.
func (m *model) head() *modelPeer {
	for range 20 {
		for _, p := range m.peers {
			if p.lag.is() {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			err := p.catalog.Sync(ctx)
			cancel()
			if err == nil {
				return p
			}
		}
	}
	m.t.Error("no member can prove that it is current")
	return nil
}

// headNames reports whether the log's head names d.
func (m *model) headNames(d digest.Digest) (head *modelPeer, named bool) {
	if head = m.head(); head == nil {
		return nil, false
	}
	all, err := head.catalog.Referenced([]digest.Digest{d})
	if err != nil {
		m.t.Error(err)
		return nil, false
	}
	return head, all[0]
}

// stands reports whether a name is still the one that was given: it is there,
// and nobody has given it anew since.
func (m *model) stands(head *modelPeer, n modelName) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var err error
	if n.manifest {
		_, err = head.catalog.Manifest(ctx, n.repo, oci.Reference{Digest: n.digest})
	} else {
		_, err = head.catalog.Blob(ctx, n.repo, n.digest)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.named[n.key()]
	return err == nil && now != nil && *now == n
}

// note remembers what happened to d, for whoever has to find out why.
func (m *model) note(d digest.Digest, format string, args ...any) {
	line := fmt.Sprintf("%8.3f %s", time.Since(m.began).Seconds(), fmt.Sprintf(format, args...))
	m.mu.Lock()
	defer m.mu.Unlock()
	log := append(m.story[d], line)
	m.story[d] = log[max(0, len(log)-60):]
}

// violated reports a rule that was broken, with the story of the blob. Whether
// it counts is the caller's to decide.
func (m *model) violated(d digest.Digest, format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failed.Add(1) > 3 {
		return
	}
	text := fmt.Sprintf(format, args...)
	for _, line := range append(m.story[""], m.story[d]...) {
		text += "\n\t" + line
	}
	m.t.Errorf("seed %d, episode %d, blob %s: %s", m.seed, m.episode, m.nameOf(d), text)
}
