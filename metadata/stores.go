package metadata

import (
	"fmt"
	"os"
	"path/filepath"
)

func (c *Catalog) openStores(fatal func(error)) (*snapshotStore, error) {
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
	c.logs.before, c.logs.applied = c.state.sync, c.state.applied
	c.state.onMembers(func() {
		wake(c.roster)
		wake(c.voting)
	})
	snaps, err := newSnapshotStore(filepath.Join(c.cfg.Dir, "snapshots"), c.state)
	if err != nil {
		return nil, err
	}
	if err := c.checkStores(snaps); err != nil {
		return nil, err
	}
	return snaps, nil
}

// checkStores refuses a data folder whose parts do not belong together: an
// entry that this node once acknowledged would be missing from its log, and it
// could help to elect a leader that lacks it. What came with a snapshot counts
// as acknowledged by others; it may be more than the snapshot's index says.
func (c *Catalog) checkStores(snaps *snapshotStore) error {
	end, err := c.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("read raft log: %w", err)
	}
	last, err := c.logs.emptied()
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
	if have := c.state.applied(); have > last {
		return fmt.Errorf("the raft log ends at entry %d, but the state holds entry %d: the log was lost or replaced", last, have)
	}
	if len(metas) > 0 && end > 0 && end < metas[0].Index {
		return c.closeGap(end)
	}
	return nil
}

// closeGap empties the log, which ends before the newest snapshot: raft had
// received that, and ended before it did so itself. Left as it is, the log
// would take no entry after the snapshot. It must be done before raft runs.
func (c *Catalog) closeGap(end uint64) error {
	first, err := c.logs.FirstIndex()
	if err == nil {
		err = c.logs.DeleteRange(first, end)
	}
	if err != nil {
		return fmt.Errorf("empty raft log: %w", err)
	}
	return nil
}
