package main

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pulls fetches what push returned from another server, and compares.
func pulls(t *testing.T, url, addr string, want []byte) {
	t.Helper()
	_, path, _ := strings.Cut(url, "/v2/")
	resp, err := http.Get("http://" + addr + "/v2/" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK || !bytes.Equal(got, want) {
		t.Errorf("pull from %s: %s, %d bytes, %v", addr, resp.Status, len(got), err)
	}
}

// TestBackupRestore takes a mesh of two into another by a file.
func TestBackupRestore(t *testing.T) {
	from := startDev(t, build(t), 2)
	blob := bytes.Repeat([]byte("blob"), 100_000)
	url := push(t, from.addrs[0], blob)
	names, all := filepath.Join(t.TempDir(), "names.tar"), filepath.Join(t.TempDir(), "all.tar")
	from.want(t, 0, "no blobs", 1, "backup", names)
	from.want(t, 0, "1 blobs of 0.4 MiB", 1, "backup", all, "--with-blobs")
	from.want(t, 1, "exists", 1, "backup", all)
	from.want(t, 1, "holds repositories", 0, "restore", all, "--yes")

	to := startDev(t, from.bin, 2)
	to.want(t, 1, "1 blobs of 0.4 MiB. All of it would be brought into the mesh", 1, "restore", all)
	b, err := os.ReadFile(all)
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(t.TempDir(), "half.tar")
	if err := os.WriteFile(half, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	to.want(t, 1, "half.tar", 1, "restore", half, "--yes")
	to.want(t, 0, "restored the names and 1 blobs of 0.4 MiB", 1, "restore", all, "--yes")
	for _, addr := range to.addrs {
		pulls(t, url, addr, blob)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(all), "*.partial")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestGarbage lists a copy that nothing has named or used for two days, and has
// it dropped.
func TestGarbage(t *testing.T) {
	d := startDev(t, build(t), 1)
	blob := []byte("garbage")
	url := push(t, d.addrs[0], blob)
	d.want(t, 0, "WHAT", 0, "gc", "--dry-run")
	req, err := http.NewRequest(http.MethodDelete, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil || resp.StatusCode != http.StatusAccepted {
		t.Fatalf("delete: %v %v", resp, err)
	}
	resp.Body.Close()
	files, err := filepath.Glob(filepath.Join(d.data, "node1", "blobs", "sha256", "*", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %v, %v", files, err)
	}
	old := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(files[0], old, old); err != nil {
		t.Fatal(err)
	}
	listed := regexp.MustCompile(`(?m)^bytes +node1 +sha256:` + filepath.Base(files[0]) + ` +7 B +\S+ +nothing names it`)
	if out, code := d.run(0, "gc", "--dry-run"); code != 0 || !listed.MatchString(out) {
		t.Errorf("exit code %d, want the copy in:\n%s", code, out)
	}
	if _, err := os.Stat(files[0]); err != nil {
		t.Errorf("a rehearsal dropped it: %v", err)
	}
	d.want(t, 0, "", 0, "gc")
	await(t, "the copy to go", func() error {
		if _, err := os.Stat(files[0]); err == nil {
			return os.ErrExist
		}
		return nil
	})
	d.want(t, 1, "nothing was done: say --yes", 0, "gc", "--keep-untagged", "720h")
	d.want(t, 0, "", 0, "gc", "--keep-untagged", "720h", "--yes")
	d.want(t, 0, `"untaggedAfter":2592000000000000`, 0, "status", "--json")
	d.want(t, 1, "at least", 0, "gc", "--keep-untagged", "1h", "--yes")
	d.want(t, 0, "", 0, "gc", "--keep-untagged", "forever")
}

// TestRecover goes on with one node of three.
func TestRecover(t *testing.T) {
	d := startDev(t, build(t), 3)
	blob := []byte("what is left")
	url := push(t, d.addrs[0], blob)
	d.want(t, 0, "ok", 0, "status")
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(d.data, "node1")
	for _, row := range []struct {
		args []string
		code int
		want string
	}{
		{nil, exitFailed, "buried     node2, node3"},
		{nil, exitFailed, "epoch 1\n"},
		{nil, exitFailed, "nothing was done: say --yes"},
		{[]string{"--yes"}, 0, "epoch 2-"},
	} {
		out, err := exec.Command(d.bin, append([]string{"recover", "--data", data, "--voters", "node1"}, row.args...)...).CombinedOutput()
		if code := exitCode(err); code != row.code || !strings.Contains(string(out), row.want) {
			t.Errorf("recover %v: exit code %d, want %d and %q:\n%s", row.args, code, row.code, row.want, out)
		}
	}
	p := serve(t, d.bin, "--data", data, "--name", "node1")
	pulls(t, url, p.addr, blob)
	push(t, p.addr, []byte("pushed after"))
}
