package bench

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// Cleaning up is bounded, and more tightly when someone waits for a prompt.
const (
	cleanLimit       = 10 * time.Minute
	interruptedLimit = time.Minute
)

// Run measures, cleans up and writes the table, or the JSON, to out. It returns
// an error if any measurement failed, after writing all others. When ctx ends it
// still cleans up, and shows what it has.
func Run(ctx context.Context, o Options, out io.Writer) error {
	if err := o.Check(); err != nil {
		return err
	}
	r, err := newRun(o)
	if err != nil {
		return err
	}
	defer r.disconnect()
	if err := r.greet(ctx); err != nil {
		return err
	}
	started := time.Now()
	for _, w := range r.picked {
		if ctx.Err() != nil {
			break
		}
		r.measure(ctx, w)
		if ctx.Err() == nil { // else once is enough
			r.clean(ctx, func(repo string) bool { return strings.HasSuffix(repo, "-"+manyTagsName) })
		}
	}
	r.clean(ctx, func(string) bool { return false })
	r.progress.end()
	report := r.report(started)
	if err := report.write(out, o.JSON); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return r.verdict(ctx)
}

// run is one call of Run.
type run struct {
	opts     *Options
	picked   []workload
	stages   []*stage
	progress *progress
	results  []Result
}

func newRun(o Options) (*run, error) {
	o = o.filled()
	picked, err := pick(o.Workloads)
	if err != nil {
		return nil, err
	}
	targets, err := parseTargets(o)
	if err != nil {
		return nil, err
	}
	r := &run{opts: &o, picked: picked, progress: newProgress(o.Progress, len(picked)*len(targets)*(o.Rounds+1))}
	c := newContent() // used by one target at a time
	for _, t := range targets {
		var id [5]byte // of each target: two may be the same registry
		rand.Read(id[:])
		r.stages = append(r.stages, newStage(&o, t, "flotilla-bench-"+hex.EncodeToString(id[:]), c))
	}
	return r, nil
}

func (r *run) disconnect() {
	for _, st := range r.stages {
		st.disconnect()
	}
}

// greet sees that every registry and process is there before anything is measured.
func (r *run) greet(ctx context.Context) error {
	for _, st := range r.stages {
		bounded, cancel := context.WithTimeout(ctx, dialTimeout)
		err := st.connect(bounded)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", st.target.name, err)
		}
		if _, err := cpuTime(st.target.pids); err != nil {
			return fmt.Errorf("%s: %w", st.target.name, err)
		}
	}
	return nil
}

// cell is a workload on one target.
type cell struct {
	workload
	*stage
	prepare prepare
	result  Result
	fixed   bool // the peak of memory cannot be reset
}

// measure runs all rounds of a workload on all targets.
func (r *run) measure(ctx context.Context, w workload) {
	var cells []*cell
	for _, st := range r.stages {
		c := &cell{workload: w, stage: st}
		c.result = Result{Workload: w.name, Target: st.target.name, Unit: string(w.unit)}
		cells = append(cells, c)
		r.progress.show(w.name + ": preparing " + st.target.name)
		c.attempt(ctx, func(ctx context.Context) (err error) {
			c.disconnect()
			c.prepare, err = w.ready(ctx, st)
			return err
		})
	}
	for round := range r.opts.Rounds + 1 { // number 0 warms up
		for _, c := range turn(cells, round) {
			r.progress.show(fmt.Sprintf("%s: round %d of %d, %s", w.name, round, r.opts.Rounds, c.target.name))
			c.attempt(ctx, func(ctx context.Context) error { return c.round(ctx, round) })
			r.progress.step(1)
		}
	}
	var first []Sample
	if cells[0].result.Failed == "" {
		first = cells[0].result.Samples
	}
	for _, c := range cells {
		if len(c.target.pids) > 0 && seesProcesses {
			c.result.Server = &Server{PeakSinceStart: c.fixed}
		}
		c.result.summarize(w.unit, first)
		r.results = append(r.results, c.result)
	}
}

// turn is the order of a round: each begins with another target.
func turn(cells []*cell, round int) []*cell {
	first := round % len(cells)
	return append(slices.Clone(cells[first:]), cells[:first]...)
}

// attempt runs one step of a cell for a bounded time; a cell that failed has no more.
func (c *cell) attempt(ctx context.Context, step func(context.Context) error) {
	if c.result.Failed != "" {
		return
	}
	late := fmt.Errorf("not done within %s", c.opts.Limit)
	ctx, cancel := context.WithTimeoutCause(ctx, c.opts.Limit, late)
	defer cancel()
	if err := step(ctx); err != nil {
		c.result.Failed = strings.Join(strings.Fields(err.Error()), " ")
	}
}

// round does one round. The connections are opened just before the clock
// starts: while content was made, a server may have closed them.
func (c *cell) round(ctx context.Context, round int) error {
	c.disconnect()
	timed, err := c.prepare(ctx, round)
	if err != nil {
		return err
	}
	if len(c.opts.PIDs) > 0 { // so servers share this machine
		flushDisks()
	}
	runtime.GC()
	c.disconnect()
	if err := c.connect(ctx); err != nil {
		return err
	}
	span := c.opts.Duration
	if round == 0 {
		span = max(span/4, time.Millisecond)
	}
	s, err := c.sample(ctx, timed, span)
	if err == nil && round > 0 {
		c.result.Samples = append(c.result.Samples, s)
	}
	return err
}

func (c *cell) sample(ctx context.Context, timed timed, span time.Duration) (Sample, error) {
	pids := c.target.pids
	if !resetPeak(pids) {
		c.fixed = true
	}
	before, err := cpuTime(pids)
	if err != nil {
		return Sample{}, err
	}
	start := time.Now()
	w, err := timed(ctx, span)
	took := time.Since(start)
	if err != nil {
		return Sample{}, err
	}
	after, err := cpuTime(pids)
	if err != nil {
		return Sample{}, err
	}
	peak, err := peakMemory(pids)
	return Sample{
		Value: c.unit.value(w, took), Seconds: took.Seconds(), Operations: w.ops, Bytes: w.bytes,
		P50: percentile(w.latencies, 50), P99: percentile(w.latencies, 99),
		CPUSeconds: (after - before).Seconds(), PeakBytes: peak,
	}, err
}

// clean removes what the targets hold, all of them at once: nothing is measured now.
func (r *run) clean(ctx context.Context, keep func(repo string) bool) {
	bounded, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	limit := time.AfterFunc(cleanLimit, func() { cancel(errors.New("cleaning up took too long")) })
	hurry := context.AfterFunc(ctx, func() { limit.Reset(interruptedLimit) })
	defer func() {
		hurry()
		limit.Stop()
		cancel(nil)
	}()
	r.progress.show("cleaning up")
	var all sync.WaitGroup
	for _, st := range r.stages {
		all.Go(func() { st.clean(bounded, keep) })
	}
	all.Wait()
}

func (r *run) report(started time.Time) *Report {
	report := &Report{
		Started: started, Seconds: time.Since(started).Seconds(), Results: r.results,
		Machine:  Machine{runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version()},
		Settings: r.opts.Settings,
	}
	for _, st := range r.stages {
		t := Target{Name: st.target.name, PIDs: st.target.pids, Repositories: st.prefix}
		for _, base := range st.target.bases {
			t.URLs = append(t.URLs, base.Scheme+"://"+base.Host)
		}
		if !st.remains.none() {
			t.Remains = &st.remains
			report.Notes = append(report.Notes, st.remainder())
		}
		if len(st.target.pids) > 0 && !seesProcesses {
			report.Notes = append(report.Notes, st.target.name+": CPU time and memory of a server can be read on Linux only.")
		}
		report.Targets = append(report.Targets, t)
	}
	return report
}

// remainder says in a line what is left on the target.
func (st *stage) remainder() string {
	var parts []string
	for _, k := range []struct {
		n    int
		what string
	}{
		{st.remains.Uploads, "open uploads"}, {st.remains.Tags, "tags"},
		{st.remains.Manifests, "manifests"}, {st.remains.Blobs, "blobs"},
	} {
		if k.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", k.n, k.what))
		}
	}
	return fmt.Sprintf("%s: left behind in repositories %s-*: %s (%s).",
		st.target.name, st.prefix, strings.Join(parts, ", "), strings.Join(st.remains.Reasons, "; "))
}

// verdict is what Run returns.
func (r *run) verdict(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
	failed := 0
	for _, res := range r.results {
		if res.Failed != "" {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d measurements failed", failed, len(r.results))
	}
	return nil
}
