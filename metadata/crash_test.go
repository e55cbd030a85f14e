package metadata

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// nthEntry is the log that the crash tests apply: the same in every process.
func nthEntry(t testing.TB, i uint64) *raft.Log {
	repo, name := fmt.Sprint("repo", i%7), fmt.Sprint("m", i)
	var c *wire.Command
	switch i % 4 {
	case 0:
		c = command(int(i), pushed(repo, name))
	case 1:
		m := imageOf(repo, name, []string{"latest", fmt.Sprint("t", i%50)})
		m.Body = []byte(strings.Repeat(name, 4000))
		c = command(int(i), m)
	case 2:
		c = command(int(i), dropped(fmt.Sprint("repo", (i-5)%7), fmt.Sprint("m", i-5)))
	default:
		c = command(int(i), unlinked(fmt.Sprint("repo", (i-7)%7), fmt.Sprint("m", i-7)))
	}
	c.RequestId = name
	return entry(t, i, c)
}

// expected returns the hash of the state after n entries.
func expected(t testing.TB, n uint64) string {
	r := newReplica(t)
	var batch []*raft.Log
	for i := uint64(1); i <= n; i++ {
		batch = append(batch, nthEntry(t, i))
	}
	r.ApplyBatch(batch)
	defer r.close()
	return r.sum()
}

// TestKill kills a process that applies entries, and looks at what it leaves:
// exactly the entries up to the one that it says.
func TestKill(t *testing.T) {
	dir, last := t.TempDir(), uint64(0)
	for round, ticks := range []int{3, 40, 120} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWriter$")
		cmd.Env = append(os.Environ(), "FLOTILLA_TEST_STATE="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines, said := bufio.NewScanner(out), last
		for n := 0; n < ticks && lines.Scan(); n++ {
			if said, err = strconv.ParseUint(lines.Text(), 10, 64); err != nil {
				t.Fatalf("the writer says %q", lines.Text())
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait() // it was killed, and says so
		r := openReplica(t, dir)
		if said <= last || r.applied() < last {
			t.Fatalf("round %d: %d applied, %d said, %d before", round, r.applied(), said, last)
		}
		last = r.applied()
		if r.sum() != expected(t, last) {
			t.Errorf("round %d: the state is not that of %d entries", round, last)
		}
		r.close()
	}
}

// TestWriter is the process that TestKill kills.
func TestWriter(t *testing.T) {
	dir := os.Getenv("FLOTILLA_TEST_STATE")
	if dir == "" {
		t.Skip("part of TestKill")
	}
	r := openReplica(t, dir)
	for {
		var batch []*raft.Log
		for range 1 + r.last%9 {
			r.last++
			batch = append(batch, nthEntry(t, r.last))
		}
		r.ApplyBatch(batch)
		if _, err := fmt.Println(r.applied()); err != nil {
			return // nobody is left to kill us
		}
	}
}

// TestPowerCut: whatever part of the unsynced log is lost, what is found are
// whole batches, up to the entry that the state says.
func TestPowerCut(t *testing.T) {
	r := newReplica(t)
	at := map[uint64]string{0: r.sum()}
	for r.last < 60 {
		var batch []*raft.Log
		for range 1 + rand.IntN(8) {
			r.last++
			batch = append(batch, nthEntry(t, r.last))
		}
		r.ApplyBatch(batch)
		at[r.last] = r.sum()
	}
	if err := r.sync(); err != nil { // so that there is a log to cut
		t.Fatal(err)
	}
	image := t.TempDir()
	copyDir(t, image, r.dir)
	logs, err := filepath.Glob(filepath.Join(image, r.name, "*.log"))
	if err != nil || len(logs) == 0 {
		t.Fatal("no log", err)
	}
	wal, err := os.ReadFile(slices.Max(logs))
	if err != nil {
		t.Fatal(err)
	}
	newest := uint64(0)
	for i := range 25 {
		cut := len(wal) * i / 24
		dir := t.TempDir()
		copyDir(t, dir, image)
		if err := os.WriteFile(filepath.Join(dir, r.name, filepath.Base(slices.Max(logs))), wal[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		found := openReplica(t, dir)
		n := found.applied()
		if want, ok := at[n]; !ok || found.sum() != want || n < newest {
			t.Errorf("of %d bytes, %d: entry %d, which ends a batch: %v", len(wal), cut, n, ok)
		}
		newest = n
		found.close()
	}
	if newest != r.last {
		t.Errorf("of the whole log, entry %d of %d", newest, r.last)
	}
}

// replicaOn opens a replica whose database is on a file system of the test's.
func replicaOn(t *testing.T, dir string, fs vfs.FS) *replica {
	t.Helper()
	r := &replica{t: t}
	r.state = &state{dir: dir, log: slog.New(slog.DiscardHandler), cache: pebble.NewCache(1 << 20), fs: fs,
		onFatal: func(err error) { r.fatal = append(r.fatal, err) }}
	if err := r.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.close() })
	r.last = r.applied()
	return r
}

// TestMembersSurvivePowerCut: a replica knows its members at once after a power
// cut, whatever else it lost: without them it would speak to nobody, and nobody
// could send it the rest.
func TestMembersSurvivePowerCut(t *testing.T) {
	dir, memory := t.TempDir(), vfs.NewCrashableMem()
	if err := memory.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for at := dir; ; at = filepath.Dir(at) {
		f, err := memory.OpenDir(at)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		if at == filepath.Dir(at) {
			break
		}
	}
	r := replicaOn(t, dir, memory)
	r.must(command(0, founded(joined("1", "n", "k"), true)))
	r.must(command(0, pushed("a", "b")))
	r.must(command(0, joined("2", "m", "l")))
	known := r.last
	r.must(command(0, pushed("a", "c")))
	found := replicaOn(t, dir, memory.CrashClone(vfs.CrashCloneCfg{}))
	if n := len(found.members()); n != 2 || found.applied() != known {
		t.Errorf("%d of 2 members, entry %d of %d", n, found.applied(), known)
	}
}

// TestFullToTheLastByte: a database that cannot be written ends the process,
// without a panic, and what was applied before is found again.
func TestFullToTheLastByte(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0], "-test.run=^TestFullWriter$", "-test.timeout=30s") // a panic leaves it with a lock held
	cmd.Env = append(os.Environ(), "FLOTILLA_TEST_FULL="+dir)
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), syscall.ENOSPC.Error()) {
		t.Fatalf("%v: %s", err, out)
	}
	r := openReplica(t, dir)
	if r.applied() < 50 || r.sum() != expected(t, r.applied()) {
		t.Errorf("the state is not that of %d entries", r.applied())
	}
}

// TestFullWriter is the process whose disk gets full. It ends without closing
// its database, which holds on to its locks.
func TestFullWriter(t *testing.T) {
	dir := os.Getenv("FLOTILLA_TEST_FULL")
	if dir == "" {
		t.Skip("part of TestFullToTheLastByte")
	}
	var full atomic.Bool
	r := replicaOn(t, dir, errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpFileWrite {
			return syscall.ENOSPC
		}
		return nil
	})))
	for i := uint64(1); i < 10_000 && len(r.fatal) == 0; i++ { // pebble writes by blocks
		r.Apply(nthEntry(t, i))
		full.Store(i > 100)
	}
	fmt.Println(r.fatal)
	os.Exit(0)
}
