package metadata

import (
	"context"
	"sync"
	"time"
)

// tasks owns goroutines: all end with its life, and close waits for them.
type tasks struct {
	mu    sync.Mutex
	ended bool
	wg    sync.WaitGroup
	end   context.CancelFunc
	bind  func(f func(context.Context)) func()                            // f, given this life
	limit func(ctx context.Context) (context.Context, context.CancelFunc) // ctx, ending with this life at the latest
}

func newTasks() *tasks {
	life, end := context.WithCancel(context.Background())
	return &tasks{
		end:  end,
		bind: func(f func(context.Context)) func() { return func() { f(life) } },
		limit: func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			stop := context.AfterFunc(life, cancel)
			return ctx, func() { stop(); cancel() }
		},
	}
}

// start runs f, unless t was closed.
func (t *tasks) start(f func(ctx context.Context)) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return false
	}
	t.wg.Go(t.bind(f))
	return true
}

// enter lets a caller's goroutine in, as a task that is not t's own: close
// waits until it has called leave. The context ends with t.
func (t *tasks) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	if err := t.hold(); err != nil {
		return nil, nil, err
	}
	ctx, cancel := t.limit(ctx)
	return ctx, func() { cancel(); t.release() }, nil
}

// hold is enter for callers that hardly ever wait, and take their context from
// limit where they do: close waits until release.
func (t *tasks) hold() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return errClosed
	}
	t.wg.Add(1)
	return nil
}

func (t *tasks) release() { t.wg.Done() }

func (t *tasks) close() {
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
	t.end()
	t.wg.Wait()
}

// rounds lets any number of callers share calls of run, one at a time. A
// caller always waits for the *next* call, never for one that has begun: what
// a round proves holds for the moment it began, and a read that came later, or
// a retry, has no part in it (etcd-io/etcd#20418).
type rounds[T any] struct {
	own  *tasks
	time time.Duration // how long one may last
	run  func(ctx context.Context) (T, error)

	mu      sync.Mutex
	running bool
	next    *round[T]
}

type round[T any] struct {
	done chan struct{}
	val  T
	err  error
}

func (r *rounds[T]) join(ctx context.Context) (T, error) {
	r.mu.Lock()
	if r.next == nil {
		r.next = &round[T]{done: make(chan struct{})}
	}
	mine := r.next
	if !r.running {
		r.running = r.own.start(r.loop)
	}
	ok := r.running
	r.mu.Unlock()
	var none T
	if !ok {
		return none, errClosed
	}
	select {
	case <-mine.done:
		return mine.val, mine.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

func (r *rounds[T]) loop(ctx context.Context) {
	for {
		r.mu.Lock()
		mine := r.next
		r.next = nil
		r.running = mine != nil
		r.mu.Unlock()
		if mine == nil {
			return
		}
		limited, cancel := context.WithTimeout(ctx, r.time)
		mine.val, mine.err = r.run(limited)
		cancel()
		close(mine.done)
	}
}

// watchers are told who leads, each time raft learns it. told runs on raft's
// main goroutine, so a watcher must return at once.
type watchers struct {
	mu   sync.Mutex
	last int
	all  map[int]func(leader string)
}

func (w *watchers) add(f func(leader string)) (remove func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = make(map[int]func(string))
	}
	w.last++
	n := w.last
	w.all[n] = f
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.all, n)
	}
}

func (w *watchers) told(leader string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.all {
		f(leader)
	}
}
