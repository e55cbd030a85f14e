package disk

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"
)

// hungTicks is how many ticks, one second each, the disk is given to answer.
const hungTicks = 10

// watchdog notices a disk that hangs: a sync that never returns is no error,
// and everybody who waits for it waits for ever. But one that lasts may as well
// have gigabytes to write to a slow disk. So after ten ticks of any operation
// the disk is asked for a small sync, and it hangs if that too lasts ten more:
// the catalogue could not write its log there either. Ticks, not a duration: a
// process that was stopped for a minute sees one tick of it.
type watchdog struct {
	small func() // returns once the disk has made something small durable, or refused to

	mu    sync.Mutex
	under map[*operation]struct{} // way

	running sync.WaitGroup // the watch, and the small sync that it waits for
}

type operation struct {
	what  string
	ticks int // that it has lasted; guarded by watchdog.mu
}

// begin is told before an operation, and what it returns after it.
func (w *watchdog) begin(what string) (over func()) {
	op := &operation{what: what}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.under == nil {
		w.under = map[*operation]struct{}{}
	}
	w.under[op] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.under, op)
	}
}

// watch calls hung, once, when the disk hangs. It ends with that or with ctx.
func (w *watchdog) watch(ctx context.Context, ticks <-chan time.Time, hung func(error)) {
	var slow string
	var answered chan struct{} // not nil while the disk is asked, and closed by its answer
	for waited := 0; waited < hungTicks; {
		select {
		case <-ctx.Done():
			return
		case <-answered: // no more than busy
			answered, waited = nil, 0
			w.forgive()
		case <-ticks:
			if answered != nil {
				waited++
			} else if slow = w.tick(); slow != "" {
				answered = w.ask()
			}
		}
	}
	hung(fmt.Errorf("%s: no answer from the disk for %d s", slow, 2*hungTicks))
}

// tick counts one tick for what is under way, and names what has lasted long.
func (w *watchdog) tick() (slow string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for op := range w.under {
		if op.ticks++; op.ticks >= hungTicks {
			slow = op.what
		}
	}
	return slow
}

// forgive gives what is under way as long again.
func (w *watchdog) forgive() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for op := range w.under {
		op.ticks = 0
	}
}

func (w *watchdog) ask() (answered chan struct{}) {
	answered = make(chan struct{})
	w.running.Go(func() {
		defer close(answered)
		w.small()
	})
	return answered
}

// watched is y with all that waits for the disk under the watchdog's eye.
func (w *watchdog) watched(y system) system {
	syncFile, syncFolder, rename := y.syncFile, y.syncFolder, y.rename
	y.syncFile = func(f *os.File) error {
		defer w.begin("sync a file")()
		return syncFile(f)
	}
	y.syncFolder = func(path string) error {
		defer w.begin("sync a folder")()
		return syncFolder(path)
	}
	y.rename = func(root, from, to string) error {
		defer w.begin("rename a file")()
		return rename(root, from, to)
	}
	return y
}

// startWatch watches the disk until Close.
func (s *Store) startWatch() {
	ctx, cancel := context.WithCancel(context.Background())
	s.unwatch = cancel
	s.watchdog.small = s.smallSync
	s.watchdog.running.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		s.watchdog.watch(ctx, ticker.C, func(err error) { _ = s.fail(err) })
	})
}

// smallSync makes a byte durable, or is refused: that is an answer too.
func (s *Store) smallSync() {
	f, err := s.temporary("probe-")
	if err != nil {
		return
	}
	defer func() {
		_ = f.Close()
		_ = os.Remove(f.Name())
	}()
	if _, err := f.Write([]byte{0}); err != nil {
		return
	}
	if err := s.sys.syncFile(f); err != nil && !isFull(err) {
		_ = s.fail(err)
	}
}
