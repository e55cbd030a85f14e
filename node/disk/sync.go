package disk

import "sync"

// folders shares the syncs of folders. One sync covers every rename that was
// done before it began, so that those who arrive while one runs wait for the
// next, all of them for the same.
type folders struct {
	syncFolder func(path string) error
	stats      *counters

	mu     sync.Mutex
	byPath map[string]*folder // grows to one per shard
}

type folder struct {
	turn   sync.Mutex // held by the sync that runs
	failed error      // of the last sync there was: none is tried after it; guarded by turn
	next   *round     // the round that has not begun; guarded by folders.mu
	synced bool       // at least once; guarded by folders.mu
}

// round is one sync and all who wait for it.
type round struct {
	over chan struct{}
	err  error // read once over is closed
}

// sync returns when a sync of path is over that began after the call did.
func (g *folders) sync(path string) error {
	f, r, first := g.join(path)
	if !first {
		g.stats.syncsShared.Add(1)
		<-r.over
		return r.err
	}
	f.turn.Lock()
	defer f.turn.Unlock()
	g.mu.Lock()
	f.next = nil // whoever comes now may have renamed after the sync below began
	g.mu.Unlock()
	if f.failed == nil {
		g.stats.folderSyncs.Add(1)
		f.failed = g.syncFolder(path)
	}
	r.err = f.failed
	g.mu.Lock()
	f.synced = r.err == nil
	g.mu.Unlock()
	close(r.over)
	return r.err
}

// syncOnce returns when a sync of path is over that began after the Store was
// opened. It is enough for names from before that.
func (g *folders) syncOnce(path string) error {
	g.mu.Lock()
	f := g.byPath[path]
	synced := f != nil && f.synced
	g.mu.Unlock()
	if synced {
		return nil
	}
	return g.sync(path)
}

// join enters the round of path that has not begun. The first to enter runs it.
func (g *folders) join(path string) (f *folder, r *round, first bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f = g.byPath[path]
	if f == nil {
		if g.byPath == nil {
			g.byPath = map[string]*folder{}
		}
		f = new(folder)
		g.byPath[path] = f
	}
	if f.next != nil {
		return f, f.next, false
	}
	f.next = &round{over: make(chan struct{})}
	return f, f.next, true
}
