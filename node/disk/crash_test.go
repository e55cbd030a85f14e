package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// The crash tests run this test binary as a process of its own, which kills
// itself before a given step of storing one blob.
const (
	crashWay  = "FLOTILLA_DISK_CRASH_WAY"
	crashStep = "FLOTILLA_DISK_CRASH_STEP"
	crashDir  = "FLOTILLA_DISK_CRASH_DIR"
	crashSize = 100_000
)

// ways are how a blob can be stored. Each says what a client gets to know.
var ways = map[string]func(ctx context.Context, s *Store, b []byte, d digest.Digest, say io.Writer) error{
	"put": func(ctx context.Context, s *Store, b []byte, d digest.Digest, _ io.Writer) error {
		return s.Put(ctx, d, int64(len(b)), bytes.NewReader(b))
	},
	"upload": func(ctx context.Context, s *Store, b []byte, d digest.Digest, say io.Writer) error {
		id, err := s.Start(ctx, "repo", digest.SHA256)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(say, "id", id)
		u := oci.Upload{Repo: "repo", ID: id}
		size, err := s.Append(ctx, u, 0, bytes.NewReader(b[:len(b)/2]))
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(say, "size", size)
		_, err = s.Finish(ctx, u, size, bytes.NewReader(b[size:]), d)
		return err
	},
	"fill": func(ctx context.Context, s *Store, b []byte, d digest.Digest, _ io.Writer) error {
		r, _, err := s.Fill(ctx, d, bodyOf(b))
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(io.Discard, r)
		return err
	},
}

// crash is the process that dies: before the step of this number, or at the
// end of the way, which it reports.
func crash() {
	deadly, err := strconv.Atoi(os.Getenv(crashStep))
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	step := 0
	b, d := content(crashSize)
	s, err := Open(Config{Dir: os.Getenv(crashDir), sys: system{step: func(name string) {
		if step++; step == deadly {
			self, _ := os.FindProcess(os.Getpid())
			_ = self.Kill()
			select {} // until it is dead
		}
		fmt.Println("step", name)
	}}})
	if err == nil {
		err = ways[os.Getenv(crashWay)](context.Background(), s, b, d, os.Stdout)
	}
	fmt.Println("over", err)
	os.Exit(0)
}

// runCrash returns what the process printed, by its first word.
func runCrash(t *testing.T, dir, way string, step int) (said map[string][]string, killed bool) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), crashWay+"="+way, crashDir+"="+dir, crashStep+"="+strconv.Itoa(step))
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != -1) {
		t.Fatalf("%v: %s", err, out)
	}
	said = map[string][]string{}
	for line := range strings.Lines(string(out)) {
		what, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		said[what] = append(said[what], rest)
	}
	return said, err != nil
}

// A process that is killed between any two steps leaves the blob whole or not
// at all, and a repeat goes through.
func TestCrash(t *testing.T) {
	for way := range ways {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			said, killed := runCrash(t, t.TempDir(), way, 0)
			steps := said["step"]
			if killed || len(steps) < 5 || len(said["over"]) != 1 || said["over"][0] != "<nil>" {
				t.Fatalf("undisturbed: %q", said)
			}
			for i, name := range steps {
				t.Run(fmt.Sprintf("%d before %s", i+1, name), func(t *testing.T) {
					testCrashAt(t, way, steps[:i])
				})
			}
		})
	}
}

func testCrashAt(t *testing.T, way string, done []string) {
	dir := t.TempDir()
	said, killed := runCrash(t, dir, way, len(done)+1)
	if !killed {
		t.Fatalf("lived on: %q", said)
	}
	s := newStore(t, Config{Dir: dir})
	b, d := content(crashSize)
	renamed := strings.Contains(strings.Join(done, ","), "rename")
	if r, _, err := s.Open(t.Context(), d); err == nil {
		_ = r.Close()
		wantBlob(t, s, d, b)
	} else if wantErr(t, err, oci.ErrBlobUnknown); renamed {
		t.Fatal("the blob is gone after its rename")
	}
	if ids := said["id"]; len(ids) == 1 {
		resumeAfterCrash(t, s, oci.Upload{Repo: "repo", ID: ids[0]}, said["size"], renamed)
	}
	if err := ways[way](t.Context(), s, b, d, io.Discard); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, b)
	for _, name := range files(t, s) {
		if strings.HasPrefix(name, "fills") {
			t.Errorf("%s left", name)
		}
	}
}

// resumeAfterCrash goes on with an upload as its client would.
func resumeAfterCrash(t *testing.T, s *Store, u oci.Upload, acknowledged []string, renamed bool) {
	t.Helper()
	b, d := content(crashSize)
	size, err := s.Size(t.Context(), u)
	if renamed {
		// Its bytes are a blob now. The client starts again, and is told so.
		wantErr(t, err, oci.ErrUploadUnknown)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(acknowledged) == 1 && acknowledged[0] != strconv.FormatInt(size, 10) {
		t.Fatalf("%d bytes there, %s acknowledged", size, acknowledged[0])
	}
	if _, err := s.Finish(t.Context(), u, size, bytes.NewReader(b[size:]), d); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, s, d, b)
}
