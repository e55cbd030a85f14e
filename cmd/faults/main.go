// Command faults proves that flotilla loses nothing. It runs meshes of real processes, has clients use them, breaks lines,
// disks, clocks and processes meanwhile by a seeded schedule, and checks every answer. deploy/test/faults.sh runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

// options is the command line.
type options struct {
	seed      uint64
	length    time.Duration
	binary    string
	old       string // a binary of an older feature level
	dir       string
	flags     []string
	nemeses   []string
	scenarios []string
	lacks     map[string]string // of the machine
}

// older is what an upgrade begins with, beside what rig.Lacks tells about.
const older = "a binary of an older feature level"

// lacking reports whether the machine lacks what is needed, and what.
func (o options) lacking(needs []string) (why string, lacks bool) {
	for _, need := range needs {
		if why, lacks := o.lacks[need]; lacks {
			return why, true
		}
	}
	return "", false
}

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(exitUsage)
	}
	in, code, err := rig.Enter()
	if err != nil {
		fmt.Printf("INCOMPLETE: nothing was checked: faults need namespaces: %v\n", err)
		return
	}
	if !in {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(exitFailed)
	}
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("faults", flag.ContinueOnError)
	f.Uint64Var(&o.seed, "seed", rand.Uint64N(1_000_000), "repeats the operations and faults of the run that had it")
	f.DurationVar(&o.length, "length", 5*time.Minute, "of the random schedule")
	f.StringVar(&o.binary, "flotilla", "bin/flotilla", "the binary to check")
	f.StringVar(&o.old, "old", "", "a binary of an older feature level, to upgrade from")
	f.StringVar(&o.dir, "dir", "", "folder for disks and logs, which exists")
	names := f.String("scenarios", "", "only these, separated by commas")
	faults := f.String("nemeses", "", "only these faults in the schedule, separated by commas")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 || o.dir == "" {
		return o, errors.New("-dir is needed, and no argument")
	}
	if *names != "" {
		o.scenarios = strings.Split(*names, ",")
	}
	if *faults != "" {
		o.nemeses = strings.Split(*faults, ",")
	}
	for _, path := range []*string{&o.binary, &o.old} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return o, err
		}
	}
	o.dir, err = filepath.Abs(o.dir)
	return o, err
}

// run plays the scenarios and says what was found.
func run(ctx context.Context, o options) error {
	r := newReport(os.Stdout)
	o.lacks = rig.Lacks()
	if o.old == "" {
		o.lacks[older] = "no binary to upgrade from was named"
	}
	if why, lacks := o.lacking([]string{rig.Lines}); lacks {
		r.lack("everything", why)
		r.close()
		return nil
	}
	r.say("seed %d", o.seed)
	for _, s := range scenarios() {
		if len(o.scenarios) > 0 && !slices.Contains(o.scenarios, s.name) {
			continue
		}
		if why, lacks := o.lacking(s.needs); lacks {
			r.lack(s.name, why)
			continue
		}
		err := play(ctx, o, s, r)
		if ctx.Err() != nil {
			r.lack("the rest", "the run was interrupted")
			break
		}
		if err != nil {
			r.fail("played to the end", fmt.Sprintf("%s: %v", s.name, err))
		}
	}
	r.judgeGaps()
	r.close()
	if n := r.failed(); n > 0 {
		return fmt.Errorf("%d checks failed", n)
	}
	return context.Cause(ctx)
}

// play runs one scenario.
func play(ctx context.Context, o options, s scenario, r *report) (err error) {
	r.say("== %s: %s", s.name, s.about)
	w, err := newWorld(ctx, o, s, r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.run(ctx, w, o); err != nil {
		cancel()
		w.working.Wait()
		return err
	}
	return w.judge(ctx)
}
