package metadata

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// A backup is the stream of the whole state (stream.go), secrets among the
// settings included. It is restored into another mesh: names and settings are
// taken over, while that mesh stays what it is and has the members that it has.

// Backup is the state at one moment, as a stream; whoever has it closes it.
type Backup struct {
	io.ReadCloser
	Size int64 // of the stream

	db pebble.Reader
}

// Wanted is Catalog.Wanted at the moment of the backup.
func (b *Backup) Wanted(after digest.Digest, n int) ([]Want, error) {
	all, err := wantedIn(b.db, after, min(n, maxPage))
	return all, wrapRead("wanted blobs", err)
}

// Backup takes all that was committed before the call, while the mesh goes on.
func (c *Catalog) Backup(ctx context.Context) (*Backup, error) {
	ctx, leave, err := c.tasks.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := c.certain(ctx); err != nil {
		return nil, fmt.Errorf("back up: %w", err)
	}
	b, err := c.snaps.backup()
	if err != nil {
		return nil, fmt.Errorf("back up: %w", oci.ErrUnavailable.Because("this node cannot make a backup").Wrap(err))
	}
	return b, nil
}

// StateHash returns the SHA-256 of this replica's whole state, as a backup would
// hold it, in hexadecimal, and the index of the last command in it. Replicas
// that are as far have the same hash; it reads the whole state, and is for
// checks that they do.
func (c *Catalog) StateHash(ctx context.Context) (index uint64, hash string, err error) {
	ctx, leave, err := c.tasks.enter(ctx)
	if err != nil {
		return 0, "", err
	}
	defer leave()
	index, hash, err = c.hashState(ctx)
	return index, hash, wrapRead("whole state", err)
}

func (c *Catalog) hashState(ctx context.Context) (index uint64, hash string, err error) {
	b, err := c.snaps.backup() // so that nothing waits for the end of it
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	at, err := readHeader(b.db)
	if err != nil {
		return 0, "", err
	}
	sum := sha256.New()
	for err == nil {
		if err = ctx.Err(); err == nil {
			_, err = io.CopyN(sum, b, 1<<20)
		}
	}
	if err != io.EOF {
		return 0, "", err
	}
	return at.index, hex.EncodeToString(sum.Sum(nil)), nil
}

// Restore takes the names of a backup into this mesh, which must hold none yet,
// and its settings in place of those that the mesh has; a backup without any
// leaves these. The whole of r is proved before anything changes. When it
// returns, every member that seems alive has them, or was given a minute to.
//
// ErrDenied where this mesh has repositories, or the backup is damaged or does
// not suit. After ErrUnavailable the names may have been taken in or not; if
// not, it can be called again.
func (c *Catalog) Restore(ctx context.Context, r io.Reader) error {
	index, err := c.restore(ctx, r)
	if errors.Is(err, errNotLeader) {
		err = oci.ErrUnavailable.Because("another member leads the mesh now").Wrap(err)
	}
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	_ = c.state.waitApplied(ctx, index) // everywhere asks the others only
	for !c.everywhere(ctx, index) && !c.tasks.isEnded() && ctx.Err() == nil {
		wait(ctx, 100*time.Millisecond)
	}
	return nil
}

// wait returns after d, or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// restore has the leader restore, and returns the index of the state that came
// of it.
func (c *Catalog) restore(ctx context.Context, r io.Reader) (uint64, error) {
	if err := c.acceptsBackup(); err != nil {
		return 0, err
	}
	switch leader := c.leader(); leader {
	case "":
		return 0, oci.ErrUnavailable.Because("no leader is known")
	case c.cfg.ID:
		return c.restoreHere(ctx, r)
	default:
		var out indexMessage
		err := c.post(ctx, leader, "/metadata/restore", r, &out)
		return out.Index, err
	}
}

// serveRestore is restore for another member.
func (c *Catalog) serveRestore(w http.ResponseWriter, r *http.Request) {
	index, err := c.restoreHere(r.Context(), r.Body)
	if err != nil {
		refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(indexMessage{index}) // the asker is gone: it can look
}

// restoreHere restores if this node leads, and makes it the only voter before.
// Raft replaces the leader's state first and that of others later, and another
// that was elected in between would know nothing of it; where nobody else can
// be, the leader's state is the mesh's, crash or not. The votes come back
// after.
func (c *Catalog) restoreHere(ctx context.Context, r io.Reader) (uint64, error) {
	if c.raft.State() != raft.Leader {
		return 0, errNotLeader.WithDetail(c.leader())
	}
	if err := c.acceptsBackup(); err != nil {
		return 0, err
	}
	b, err := c.receiveBackup(r) // not a task: Close waits for nobody who sends slowly
	if err != nil {
		return 0, err
	}
	ctx, leave, err := c.tasks.enter(ctx)
	if err != nil {
		b.discard()
		return 0, err
	}
	defer leave()
	voting, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	if err := c.voteAlone(voting); err != nil {
		c.leaving.end()
		b.discard()
		return 0, err
	}
	type answer struct {
		index uint64
		err   error
	}
	answers := make(chan answer, 1)
	c.futures.Go(func() { // to its end, whoever waits
		defer b.discard()
		index, err := c.replaceState(b)
		c.leaving.end()
		answers <- answer{index, err}
	})
	select {
	case a := <-answers:
		return a.index, a.err
	case <-ctx.Done():
		return 0, oci.ErrUnavailable.Because("the restore goes on, but was not waited for").Wrap(ctx.Err())
	}
}

// acceptsBackup returns nil if no name of this mesh would be lost.
func (c *Catalog) acceptsBackup() error {
	db, err := c.state.acquire()
	if err != nil {
		return err
	}
	defer c.state.mu.RUnlock()
	held, err := hasPrefix(db, []byte{keyRepo})
	switch {
	case err != nil:
		return oci.ErrUnavailable.Wrap(err)
	case held:
		return oci.ErrDenied.Because("this mesh holds repositories: a backup is restored into a mesh that has none")
	case c.state.cluster().ID == "":
		return oci.ErrUnavailable.Because("this node belongs to no mesh yet")
	}
	return nil
}

// backupFile is a backup that was received and proved.
type backupFile struct {
	name    string
	discard func()
}

// receiveBackup spools r and proves it.
func (c *Catalog) receiveBackup(r io.Reader) (*backupFile, error) {
	dir, err := c.snaps.spare("restore")
	if err != nil {
		return nil, oci.ErrUnavailable.Wrap(err)
	}
	b := &backupFile{name: filepath.Join(c.snaps.dir, dir, streamFile), discard: func() { c.snaps.discard(dir) }}
	if err := b.receive(r, c.state.level()); err != nil {
		b.discard()
		if errors.Is(err, errStream) || errors.Is(err, errRecord) {
			return nil, oci.ErrDenied.Because("%v", err)
		}
		return nil, err
	}
	return b, nil
}

func (b *backupFile) receive(r io.Reader, level uint32) error {
	f, err := os.OpenFile(b.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return oci.ErrUnavailable.Wrap(err)
	}
	had, err := levelOf(io.TeeReader(r, f))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	// Level 2 keeps indexes of what level 1 holds too; beyond it a level only adds.
	if had > level || had < levelHealing && level >= levelHealing {
		return oci.ErrDenied.Because("the members of the mesh of this backup were of feature level %d, those here are of %d", had, level)
	}
	return nil
}

// levelOf reads a stream to its end, proves it, and returns the feature level
// of the mesh that it was made in: what there is beside the names depends on
// it.
func levelOf(r io.Reader) (uint32, error) {
	d, err := newDecoder(r)
	if err != nil {
		return 0, err
	}
	least := uint32(0)
	for {
		k, v, err := d.next()
		if err == io.EOF {
			return least, nil
		}
		if err != nil {
			return 0, err
		}
		if k[0] != keyMember {
			continue
		}
		m, err := decodeMember(string(k[1:]), v)
		if err != nil {
			return 0, err
		}
		if !m.buried && (least == 0 || m.Level < least) {
			least = m.Level
		}
	}
}

// voteAlone returns once this node, which leads, is the only voter.
func (c *Catalog) voteAlone(ctx context.Context) error {
	for ; ; wait(ctx, c.cfg.Timing.Tick) {
		switch {
		case ctx.Err() != nil:
			return oci.ErrUnavailable.Because("the other voters do not let go").Wrap(ctx.Err())
		case c.raft.State() != raft.Leader:
			return errNotLeader.WithDetail(c.leader())
		case c.soleVoter():
			return nil
		}
		voters, _ := c.servers()
		for _, id := range without(voters, []string{c.cfg.ID}) {
			c.leaving.add(id, time.Now().Add(leaveTime))
		}
		wake(c.voting)
	}
}

// replaceState has raft take b for the state. Until it returns nothing is
// proposed and raft's configuration stays.
func (c *Catalog) replaceState(b *backupFile) (uint64, error) {
	c.changing.Lock()
	defer c.changing.Unlock()
	c.restoring.Store(true)
	defer c.restoring.Store(false)
	for c.queued.Load() > 0 { // each ends, if only with this node's leadership
		time.Sleep(time.Millisecond)
	}
	term := c.raft.CurrentTerm()
	if !c.knowsAll() || !c.soleVoter() {
		return 0, oci.ErrUnavailable.Because("this node does not lead alone any more")
	}
	if err := c.acceptsBackup(); err != nil { // with nothing under way
		return 0, err
	}
	// Beyond all that any replica holds, lest one take it for old.
	at := progress{index: c.raft.LastIndex() + 1, term: term}
	size, err := c.rewrite(b, at, func(r io.Reader) (int64, error) { return io.Copy(io.Discard, r) })
	if err != nil {
		return 0, oci.ErrUnavailable.Wrap(err)
	}
	_, err = c.rewrite(b, at, func(r io.Reader) (int64, error) {
		meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: at.index, Size: size}
		return size, c.raft.Restore(meta, &asLeader{Reader: r, c: c, term: term}, enqueueTime)
	})
	if err != nil {
		return 0, oci.ErrUnavailable.Because("raft did not take the backup").Wrap(err)
	}
	wake(c.pulses)
	return at.index, nil
}

// asLeader yields bytes only while this node has led term without a break.
// Raft reads it where it would also hear of another leader, so that nothing
// comes between the look and the restore.
type asLeader struct {
	io.Reader
	c    *Catalog
	term uint64
}

func (a *asLeader) Read(p []byte) (int, error) {
	if !a.c.leads(a.term) {
		return 0, errNotLeader
	}
	return a.Reader.Read(p)
}

// rewrite calls use with the stream that b becomes in this mesh.
func (c *Catalog) rewrite(b *backupFile, at progress, use func(io.Reader) (int64, error)) (int64, error) {
	f, err := os.Open(b.name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	db, err := c.state.acquire()
	if err != nil {
		return 0, err
	}
	r, err := newRewriter(f, db, at)
	c.state.mu.RUnlock() // before use: raft closes what is read
	if err != nil {
		return 0, err
	}
	return use(r)
}
