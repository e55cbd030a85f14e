package bench

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// unit is what a workload's values count.
type unit string

const (
	throughput unit = "MiB/s"
	rate       unit = "req/s"
	latency    unit = "ms"
)

// lowerIsBetter holds for times alone.
func (u unit) lowerIsBetter() bool { return u == latency }

// value is what work in the given time amounts to.
func (u unit) value(w work, took time.Duration) float64 {
	switch u {
	case throughput:
		return float64(w.bytes) / float64(mib) / took.Seconds()
	case rate:
		return float64(w.ops) / took.Seconds()
	default:
		return took.Seconds() * 1000 / float64(w.ops)
	}
}

// A workload is a row of the table.
type workload struct {
	name  string
	unit  unit
	about string
	ready ready
}

// ready brings a target into the state that the workload needs, once.
type ready func(ctx context.Context, st *stage) (prepare, error)

// prepare does what comes before a round, with the clock still stopped. The
// round before the first, for warming up, is number 0.
type prepare func(ctx context.Context, round int) (timed, error)

// timed is what is measured. One that counts requests does so for span.
type timed func(ctx context.Context, span time.Duration) (work, error)

// work is what a timed function did.
type work struct {
	ops       int
	bytes     int64
	latencies []time.Duration // of each operation, where they are counted
}

func workloads() []workload {
	return []workload{
		{"push-monolithic", throughput, "one large blob, POST and PUT", pushMonolithic},
		{"push-chunked", throughput, "one large blob, POST, a PATCH for each chunk, PUT", pushChunked},
		{"push-parallel", throughput, "several blobs at once, POST and PUT", pushParallel},
		{"pull", throughput, "one large blob, digest checked while it arrives", pullOne(true)},
		{"pull-raw", throughput, "one large blob, not checked", pullOne(false)},
		{"pull-parallel", throughput, "several blobs at once, digests checked", pullParallel},
		{"range-get", rate, "small ranges at random places of one blob", rangeGet},
		{"manifest-put", rate, "new manifests under new tags", manifestPut},
		{"manifest-get", rate, "manifests by tag", manifestRead("GET")},
		{"manifest-head", rate, "HEAD of manifests by tag", manifestRead("HEAD")},
		{"blob-head", rate, "HEAD of one blob", blobHead},
		{"tag-list", latency, "all tags of a repository with many, page by page", tagList},
		{"tag-put", rate, "new manifests under the tags of a repository with many", tagPut},
		{"image-push", latency, "image: HEAD, POST and PUT for config and layers, then the manifest", imagePush},
		{"image-pull", latency, "image: manifest by tag, config and layers, digests checked", imagePull},
	}
}

// stage is a target with all that we hold for it.
type stage struct {
	opts     *Options
	target   *target
	prefix   string // of its repositories' names
	content  *content
	sessions []*session // one for each worker
	ledger   *ledger

	manyTags    *manyTags
	manyTagsErr error

	remains Remains
	refused map[string]bool // kinds that it does not let us delete
	noted   map[string]bool // kinds that remains gives a reason for
}

func newStage(o *Options, t *target, prefix string, c *content) *stage {
	st := &stage{
		opts: o, target: t, prefix: t.space + prefix, content: c, ledger: newLedger(),
		refused: map[string]bool{}, noted: map[string]bool{},
	}
	// ServerName is set for each connection.
	conf := &tls.Config{InsecureSkipVerify: o.InsecureTLS, NextProtos: []string{"http/1.1"}}
	for i := range max(o.Workers, o.Transfers) {
		st.sessions = append(st.sessions, newSession(t.bases[i%len(t.bases)], conf))
	}
	return st
}

func (st *stage) repository(name string) repository {
	return repository{st.prefix + "-" + name, st.ledger}
}

// connect opens the connections of all workers, so that no measured request has
// to, and sees that the registry answers.
func (st *stage) connect(ctx context.Context) error {
	for _, s := range st.sessions {
		if err := ping(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// disconnect comes before a pause: servers close connections that idle.
func (st *stage) disconnect() {
	for _, s := range st.sessions {
		s.close()
	}
}

// spread calls do for 0 to n-1 from so many workers; the first error ends it.
func (st *stage) spread(ctx context.Context, n, workers int, do func(ctx context.Context, s *session, i int) error) error {
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range st.sessions[:min(workers, len(st.sessions))] {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := do(ctx, s, i); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// count calls do from so many workers, with a number that no other call gets,
// until span is over or Options.Requests were made; size is what each moves.
func (st *stage) count(ctx context.Context, span time.Duration, workers int, do func(ctx context.Context, s *session, i int) error) (work, error) {
	took := make([][]time.Duration, workers)
	var next atomic.Int64
	end := time.Now().Add(span)
	group, ctx := errgroup.WithContext(ctx)
	for worker, s := range st.sessions[:workers] {
		group.Go(func() error {
			for start := time.Now(); start.Before(end); {
				i := int(next.Add(1)) - 1
				if i >= st.opts.Requests {
					return nil
				}
				if err := do(ctx, s, i); err != nil {
					return err
				}
				now := time.Now()
				took[worker] = append(took[worker], now.Sub(start))
				start = now
			}
			return nil
		})
	}
	err := group.Wait()
	all := slices.Concat(took...)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("no request within %s", span)
	}
	return work{ops: len(all), latencies: all}, err
}
