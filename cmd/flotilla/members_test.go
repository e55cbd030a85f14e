package main

import (
	"bufio"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// devPorts finds a port that is free now, and so are those of the other nodes
// of a mesh that begins there.
func devPorts(t *testing.T, nodes int) (addrs []string) {
	t.Helper()
	for range 100 {
		host, port, _ := net.SplitHostPort(freePort(t))
		first, _ := strconv.Atoi(port)
		addrs = nil
		for i := range nodes {
			addr := net.JoinHostPort(host, strconv.Itoa(first+10*i))
			if ln, err := net.Listen("tcp", addr); err == nil {
				ln.Close()
				addrs = append(addrs, addr)
			}
		}
		if len(addrs) == nodes {
			return addrs
		}
	}
	t.Fatal("no free ports")
	return nil
}

// dev is a running `flotilla dev`.
type dev struct {
	bin, data string
	addrs     []string
	cmd       *exec.Cmd
	says      *bufio.Scanner
}

func startDev(t *testing.T, bin string, nodes int) *dev {
	t.Helper()
	d := &dev{bin: bin, data: t.TempDir(), addrs: devPorts(t, nodes)}
	d.cmd = exec.Command(d.bin, "dev", "--nodes", strconv.Itoa(nodes), "--data", d.data, "--listen", d.addrs[0])
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.cmd.Process.Kill(); _ = d.cmd.Wait() })
	d.says = bufio.NewScanner(out)
	d.until(t, "Ctrl-C")
	return d
}

// until reads what dev says up to the first line that holds text.
func (d *dev) until(t *testing.T, text string) {
	t.Helper()
	for d.says.Scan() {
		if strings.Contains(d.says.Text(), text) {
			return
		}
	}
	t.Fatalf("flotilla dev never said %q", text)
}

// run executes a command that asks node i.
func (d *dev) run(i int, args ...string) (string, int) {
	args = append(args, "--server", d.addrs[i])
	if args[0] != "status" {
		args = append(args, "--secret-file", filepath.Join(d.data, "node1", "mesh.secret"))
	}
	out, err := exec.Command(d.bin, args...).CombinedOutput()
	return string(out), exitCode(err)
}

// want is run with an exit code and a text that must come.
func (d *dev) want(t *testing.T, code int, text string, i int, args ...string) {
	t.Helper()
	if out, got := d.run(i, args...); got != code || !strings.Contains(out, text) {
		t.Errorf("flotilla %s: exit code %d, want %d and %q:\n%s", strings.Join(args, " "), got, code, text, out)
	}
}

// TestDrainAndRemove lets two nodes of four go. The others stay: a mesh in one
// process is a mesh all the same.
func TestDrainAndRemove(t *testing.T) {
	d := startDev(t, build(t), 4)
	push(t, d.addrs[3], []byte("pushed before"))
	d.want(t, 1, "no member called node9", 0, "drain", "node9")
	d.want(t, 0, "", 0, "drain", "node2", "--detach")
	await(t, "status to tell who is being drained, or gone", func() error {
		out, _ := d.run(0, "status")
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "node2 ") && !strings.Contains(line, "draining") {
				return fmt.Errorf("status says %q", line)
			}
		}
		return nil
	})
	d.until(t, "node2 has left the mesh")
	d.want(t, 0, "node4 has left the mesh", 0, "drain", "node4")
	d.until(t, "node4 has left the mesh")

	d.want(t, 1, "It would leave the mesh for ever", 0, "remove", "node3")
	d.want(t, 0, "node3", 0, "status")
	d.want(t, 0, "node3 was removed", 0, "remove", "node3", "--yes")
	d.until(t, "node3 ended: this node was removed")
	d.want(t, 1, "no member called node3", 0, "remove", "node3", "--yes")
	d.want(t, 1, "only member", 0, "remove", "node1", "--yes")
	push(t, d.addrs[0], []byte("pushed after"))

	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("SIGTERM: %v, want exit code 0", err)
	}
}
