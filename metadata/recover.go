package metadata

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// Where most voters are gone for good, nobody can be elected, and only people
// can know that they will not return. Recovery makes what one node's folder
// holds the truth of a new epoch: all of its log counts, committed or not, and
// the node is the only voter. What others had agreed on without it is lost.
//
// Nodes of two epochs never meet, not even of two that began with the same one
// (Epoch). They refuse each other's greeting; a snapshot of another epoch is
// not taken; and a catalogue is not opened by a node of another epoch
// (Config.Epoch), nor one that is recovered in part. A
// member that is kept therefore comes back with no catalogue at all (SetAside),
// keeps its UUID and its blobs, and gets the names from the recovered node.

// RecoverConfig says what to recover, and who stays.
type RecoverConfig struct {
	Dir    string   // Config.Dir of a node that does not run
	ID     string   // its UUID
	Keep   []string // UUIDs of the members that stay beside it; the others are buried
	DryRun bool     // only look
	Log    *slog.Logger

	atStep func(step string) // tests end the process, so to speak, at a step
}

// Recovered is what a folder holds, and what Recover makes, or would make, of
// it.
type Recovered struct {
	Cluster      Cluster   // in a dry run still of the old epoch
	Index, Term  uint64    // of the last entry that the node's log held
	LogTime      time.Time // of the last command: what others agreed on later is lost
	Voters       []string  // UUIDs, as the log knew them
	Kept, Buried []Member
	Unfinished   bool // a recovery was begun here: only repeating it helps
}

// recoveringFile is there from the first change of a recovery to the last.
// Before the last, the node would take itself for the only voter of the old
// epoch, beside others who know better.
const recoveringFile = "recovering"

func checkRecovered(dir string) error {
	_, err := os.Stat(filepath.Join(dir, recoveringFile))
	switch {
	case err == nil:
		return errors.New("a recovery of this node was begun and not finished: repeat it")
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// Recover makes the folder of a stopped node the beginning of a new epoch with
// that node as its only voter. One that was interrupted can be repeated. The
// caller then has the node greet others as of Recovered.Cluster.Epoch.
func Recover(cfg RecoverConfig) (Recovered, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r := &recovery{cfg: cfg, log: cfg.Log.With("part", "metadata")}
	out, err := r.run()
	if err != nil {
		return Recovered{}, fmt.Errorf("recover: %w", err)
	}
	return out, nil
}

// SetAside moves the catalogue of a stopped node out of the way and returns
// where it is now, so that the node comes back as a blank member of a mesh that
// was recovered without it. "" says that there is none.
func SetAside(dir string) (string, error) {
	for n := 1; ; n++ {
		to := fmt.Sprintf("%s.aside-%d", filepath.Clean(dir), n)
		if _, err := os.Lstat(to); err == nil {
			continue
		}
		err := os.Rename(dir, to)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err == nil {
			err = syncDir(filepath.Dir(to))
		}
		if err != nil {
			return "", fmt.Errorf("set catalogue aside: %w", err)
		}
		return to, nil
	}
}

// recovery is the stores of a stopped node, and how far their log goes.
type recovery struct {
	cfg RecoverConfig
	log *slog.Logger

	state       *state
	logs        *logStore
	snaps       *snapshotStore
	failed      error // of the disk
	index, term uint64
}

func (r *recovery) run() (out Recovered, err error) {
	if _, err := os.Stat(filepath.Join(r.cfg.Dir, "state", currentFile)); err != nil {
		return out, fmt.Errorf("%s holds no catalogue: %w", r.cfg.Dir, err)
	}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.open(); err != nil {
		return out, err
	}
	if out, err = r.look(); err != nil || r.cfg.DryRun {
		return out, err
	}
	if err := r.begin(); err != nil {
		return out, err
	}
	if err := r.newEpoch(out); err != nil {
		return out, err
	}
	if err := r.voteAlone(); err != nil {
		return out, err
	}
	out.Cluster = r.state.cluster()
	return out, r.end()
}

func (r *recovery) step(name string) {
	if r.cfg.atStep != nil {
		r.cfg.atStep(name)
	}
}

// open opens the stores; the state first, since the log would wait for another
// process that has it. For a dry run nothing may be written.
func (r *recovery) open() (err error) {
	fatal := func(err error) { r.failed = errors.Join(r.failed, err) }
	open := openState
	if r.cfg.DryRun {
		open = viewState
	}
	if r.state, err = open(filepath.Join(r.cfg.Dir, "state"), r.log, fatal); err != nil {
		return err
	}
	if r.logs, err = openLog(filepath.Join(r.cfg.Dir, "raft"), newRaftLog(r.log), usualBounds(), fatal); err != nil {
		return err
	}
	dir := filepath.Join(r.cfg.Dir, "snapshots")
	if r.cfg.DryRun {
		r.snaps = &snapshotStore{dir: dir, state: r.state, log: r.log, opened: make(map[string]*checkpoint)}
		return nil
	}
	r.logs.before, r.logs.applied = r.state.sync, r.state.applied
	if r.snaps, err = newSnapshotStore(dir, r.state); err != nil {
		return err
	}
	return checkStores(r.state, r.logs, r.snaps)
}

func (r *recovery) close() error {
	errs := []error{r.failed}
	if r.state != nil {
		errs = append(errs, r.state.close())
	}
	if r.logs != nil {
		errs = append(errs, r.logs.Close())
	}
	return errors.Join(errs...)
}

// begin makes the state what look saw. From here on the node cannot start
// before the recovery is done.
func (r *recovery) begin() error {
	if err := writeFile(r.cfg.Dir, recoveringFile, nil); err != nil {
		return err
	}
	r.step("begun")
	older, err := r.snaps.restoreAtStart()
	if err != nil {
		return err
	}
	if older {
		metas, err := r.snaps.metas()
		if err != nil {
			return err
		}
		_, stream, err := r.snaps.Open(metas[0].ID)
		if err == nil {
			err = errors.Join(r.state.Restore(stream), stream.Close())
		}
		if err != nil {
			return err
		}
	}
	err = r.eachEntry(r.state.applied(), r.apply)
	r.step("applied")
	return err
}

func (r *recovery) apply(l *raft.Log) error {
	r.state.Apply(l) // what it came to was told to who asked, if to anybody
	return r.state.failure()
}

// newEpoch appends the entry that begins it, as a leader of the last term
// would, and applies it.
func (r *recovery) newEpoch(found Recovered) error {
	op := &wire.Recover{Epoch: uint64(found.Cluster.Epoch.next())}
	for _, m := range found.Kept {
		op.Keep = append(op.Keep, m.ID)
	}
	data, err := proto.Marshal(&wire.Command{Version: 1, Op: &wire.Command_Recover{Recover: op}})
	if err != nil {
		return err
	}
	r.index++
	l := &raft.Log{Index: r.index, Term: r.term, Type: raft.LogCommand, Data: data}
	if err := r.logs.StoreLog(l); err != nil {
		return err
	}
	r.step("appended")
	if err := r.apply(l); err != nil {
		return err
	}
	if r.state.cluster().Epoch != Epoch(op.Epoch) {
		return errors.New("the new epoch was refused")
	}
	r.step("decided")
	return nil
}

// voteAlone makes a snapshot by which this node is the only voter, and empties
// the log: others get all from the snapshot, and so nothing of the old epoch.
func (r *recovery) voteAlone() error {
	voter := raft.Server{ID: raft.ServerID(r.cfg.ID), Address: raft.ServerAddress(r.cfg.ID)}
	conf := raft.Configuration{Servers: []raft.Server{voter}}
	snap, err := r.state.Snapshot()
	if err != nil {
		return err
	}
	sink, err := r.snaps.Create(raft.SnapshotVersionMax, r.index, r.term, conf, r.index, nil)
	if err != nil {
		return err
	}
	if err := snap.Persist(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	r.step("snapshot")
	if err := emptyLog(r.logs, r.index); err != nil {
		return err
	}
	r.step("emptied")
	return nil
}

func (r *recovery) end() error {
	if err := r.close(); err != nil {
		return err
	}
	r.state, r.logs = nil, nil
	if err := os.Remove(filepath.Join(r.cfg.Dir, recoveringFile)); err != nil {
		return err
	}
	return syncDir(r.cfg.Dir)
}
