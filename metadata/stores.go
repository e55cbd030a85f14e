package metadata

import (
	"fmt"
	"os"
	"path/filepath"
)

func (c *Catalog) openStores(fatal func(error)) (*snapshotStore, error) {
	if err := checkRecovered(c.cfg.Dir); err != nil {
		return nil, err
	}
	dir := filepath.Join(c.cfg.Dir, "raft")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make raft folder: %w", err)
	}
	var err error
	if c.logs, err = openLog(dir, newRaftLog(c.log), c.bounds, fatal); err != nil {
		return nil, err
	}
	if c.state, err = openState(filepath.Join(c.cfg.Dir, "state"), c.log, fatal); err != nil {
		return nil, err
	}
	c.state.clock, c.state.linkAge = c.cfg.Now, c.cfg.Timing.LinkAge
	c.state.onNamed = c.cfg.OnNamed
	c.logs.before, c.logs.applied = c.state.sync, c.state.applied
	c.state.onMembers(func() {
		wake(c.roster)
		wake(c.voting)
	})
	snaps, err := newSnapshotStore(filepath.Join(c.cfg.Dir, "snapshots"), c.state)
	if err != nil {
		return nil, err
	}
	if err := checkStores(c.state, c.logs, snaps); err != nil {
		return nil, err
	}
	if mesh := c.state.cluster(); mesh.ID != "" && c.cfg.Epoch != 0 && mesh.Epoch != c.cfg.Epoch {
		return nil, fmt.Errorf("the catalogue is of epoch %s of the mesh, and this node of epoch %s: one of them is from before a recovery", mesh.Epoch, c.cfg.Epoch)
	}
	return snaps, nil
}

// checkStores refuses a data folder whose parts do not belong together: an
// entry that this node once acknowledged would be missing from its log, and it
// could help to elect a leader that lacks it. What came with a snapshot counts
// as acknowledged by others; it may be more than the snapshot's index says.
func checkStores(s *state, logs *logStore, snaps *snapshotStore) error {
	end, err := logs.LastIndex()
	if err != nil {
		return fmt.Errorf("read raft log: %w", err)
	}
	last, err := logs.emptied()
	if err != nil {
		return fmt.Errorf("read raft log: %w", err)
	}
	last = max(last, end)
	metas, err := snaps.metas()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, m := range metas {
		last = max(last, m.Index, m.Applied)
	}
	if have := s.applied(); have > last {
		return fmt.Errorf("the raft log ends at entry %d, but the state holds entry %d: the log was lost or replaced", last, have)
	}
	if len(metas) > 0 && end > 0 && end < metas[0].Index {
		return emptyLog(logs, end)
	}
	return nil
}

// emptyLog empties a log that ends at end, before raft runs. One that ends
// before the newest snapshot must be: raft had received that, and ended before
// it did so itself, and the log would take no entry after the snapshot.
func emptyLog(logs *logStore, end uint64) error {
	first, err := logs.FirstIndex()
	if err == nil {
		err = logs.DeleteRange(first, end)
	}
	if err != nil {
		return fmt.Errorf("empty raft log: %w", err)
	}
	return nil
}
