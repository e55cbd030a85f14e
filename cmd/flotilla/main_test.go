package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/flotilla-registry/flotilla/node"
)

// patience bounds every wait for a condition.
const patience = 60 * time.Second

// build makes the program as users have it, without the race detector, which
// allows fewer goroutines than this file makes connections.
func build(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "flotilla")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return bin
}

// freePort finds a port that is free now.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// process is a running `flotilla serve`.
type process struct {
	cmd  *exec.Cmd
	addr string
	log  *bytes.Buffer
}

// serve starts a node in a process of its own and waits until it is ready.
func serve(t *testing.T, bin string, args ...string) *process {
	t.Helper()
	p := &process{addr: freePort(t), log: new(bytes.Buffer)}
	p.cmd = exec.Command(bin, append([]string{"serve", "--listen", p.addr, "--peer-listen", "127.0.0.1:0", "--gossip-listen", "127.0.0.1:0"}, args...)...)
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	await(t, "the node to be ready", func() error {
		resp, err := http.Get("http://" + p.addr + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
	return p
}

func await(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s: %v", what, err)
		case <-tick.C:
		}
	}
}

func TestServeStatusStop(t *testing.T) {
	bin := build(t)
	p := serve(t, bin, "--data", t.TempDir(), "--name", "alone")
	out, err := exec.Command(bin, "status", "--server", p.addr).CombinedOutput()
	if err != nil || !regexp.MustCompile(`(?m)^alone +default +leader +up `).Match(out) {
		t.Errorf("status: %v\n%s", err, out)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("SIGTERM: %v, want exit code 0\n%s", err, p.log)
	}
	out, err = exec.Command(bin, "status", "--server", p.addr).CombinedOutput()
	if code := exitCode(err); code != exitFailed || lines(out) != 1 {
		t.Errorf("status of nothing: exit code %d, want %d and one line: %s", code, exitFailed, out)
	}
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

func lines(b []byte) int { return bytes.Count(b, []byte("\n")) }

// TestBadStarts: one clear line on stderr, an exit code, nothing half-started.
func TestBadStarts(t *testing.T) {
	bin := build(t)
	data0 := t.TempDir()
	p := serve(t, bin, "--data", data0)
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte(base64.StdEncoding.EncodeToString(make([]byte, 32))), 0o600); err != nil {
		t.Fatal(err)
	}
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte(base64.StdEncoding.EncodeToString([]byte("short"))), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"an unknown command", []string{"sail"}, exitUsage, "sail"},
		{"an unknown flag", []string{"serve", "--sail"}, exitUsage, "--sail"},
		{"a flag of the wrong kind", []string{"serve", "--replicas", "many"}, exitUsage, "--replicas"},
		{"an argument", []string{"serve", "now"}, exitUsage, "now"},
		{"a bad name", []string{"serve", "--name", "a b"}, exitUsage, "--name"},
		{"half a certificate", []string{"serve", "--tls-cert", file}, exitUsage, "--tls-key"},
		{"an empty certificate", []string{"serve", "--tls-cert", file, "--tls-key", file}, exitUsage, "--tls-cert"},
		{"a port in use", []string{"serve", "--listen", p.addr}, exitFailed, "in use"},
		{"a data folder that is a file", []string{"serve", "--data", file}, exitFailed, "data folder"},
		{"a short secret", []string{"serve", "--secret-file", short}, exitFailed, "at least 32"},
		{"too many nodes", []string{"dev", "--nodes", "99"}, exitUsage, "--nodes"},
		{"a server that is no URL", []string{"status", "--server", "http://a b"}, exitUsage, "--server"},
		{"a drain of nobody", []string{"drain"}, exitUsage, "one node"},
		{"a removal of two", []string{"remove", "a", "b"}, exitUsage, "one node"},
		{"a backup to nowhere", []string{"backup"}, exitUsage, "one file"},
		{"a restore from nowhere", []string{"restore"}, exitUsage, "one file"},
		{"a restore from no file", []string{"restore", data0 + "/none"}, exitFailed, "none"},
		{"a restore from no archive", []string{"restore", short}, exitFailed, short},
		{"a recovery without voters", []string{"recover"}, exitUsage, "--voters"},
		{"a recovery of nothing", []string{"recover", "--voters", "a", "--data", data0 + "/none"}, exitFailed, "none"},
		{"a recovery of a node that runs", []string{"recover", "--voters", "a", "--data", data0}, exitFailed, "another flotilla process"},
		{"garbage kept for no time", []string{"gc", "--keep-untagged", "soon"}, exitUsage, "--keep-untagged"},
		{"garbage kept in a rehearsal", []string{"gc", "--keep-untagged", "720h", "--dry-run"}, exitUsage, "--dry-run"},
		{"a token in plain text", []string{"gc", "--server", "http://192.0.2.1:5000"}, exitUsage, "--plaintext"},
		{"another mesh's secret", []string{"gc", "--server", p.addr, "--secret-file", other}, exitFailed, "another secret"},
		{"no secret", []string{"gc", "--server", p.addr, "--secret-file", data0 + "/none"}, exitFailed, "--secret-file"},
	} {
		t.Run(row.name, func(t *testing.T) {
			data := t.TempDir()
			args := row.args
			if args[0] == "serve" {
				args = append([]string{"serve", "--data", data, "--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--gossip-listen", "127.0.0.1:0"}, args[1:]...)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			cmd := exec.CommandContext(ctx, bin, args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if code := exitCode(cmd.Run()); code != row.code {
				t.Errorf("exit code %d, want %d", code, row.code)
			}
			var told []string
			for s := bufio.NewScanner(&stderr); s.Scan(); {
				if strings.HasPrefix(s.Text(), "flotilla: ") {
					told = append(told, s.Text())
				}
			}
			if len(told) != 1 || !strings.Contains(told[0], row.want) {
				t.Errorf("stderr tells %q, want one line that says %q", told, row.want)
			}
			if _, err := os.Stat(filepath.Join(data, "raft")); err == nil {
				t.Error("a catalogue was left behind")
			}
		})
	}
}

// figure reads one unlabelled metric of a running node.
func figure(t *testing.T, addr, name string) float64 {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if value, ok := strings.CutPrefix(s.Text(), name+" "); ok {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// TestSilentConnections opens ten thousand connections that say nothing. A
// pull meanwhile is served, and all that they cost is given back.
func TestSilentConnections(t *testing.T) {
	const silent = 10_000
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < silent+1000 {
		t.Skipf("needs %d descriptors, has %d", silent+1000, limit.Cur)
	}
	p := serve(t, build(t), "--data", t.TempDir())
	blob := make([]byte, 1<<20)
	rand.Read(blob)
	url := push(t, p.addr, blob)
	files, routines := figure(t, p.addr, "process_open_fds"), figure(t, p.addr, "go_goroutines")

	conns := make([]net.Conn, 0, silent)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range silent {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatalf("connection %d: %v", len(conns), err)
		}
		conns = append(conns, c)
	}
	await(t, "the server to hold them all", func() error {
		if got := figure(t, p.addr, "process_open_fds"); got < silent {
			return fmt.Errorf("%v descriptors", got)
		}
		return nil
	})
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("pull among silent connections: %d bytes, %v", len(got), err)
	}
	http.DefaultClient.CloseIdleConnections()
	await(t, "descriptors and goroutines to return to their level", func() error {
		f, r := figure(t, p.addr, "process_open_fds"), figure(t, p.addr, "go_goroutines")
		if f > files+20 || r > routines+20 {
			return fmt.Errorf("descriptors %v (before %v), goroutines %v (before %v)", f, files, r, routines)
		}
		return nil
	})
}

// push uploads one blob and returns its address.
func push(t *testing.T, addr string, blob []byte) string {
	t.Helper()
	d := fmt.Sprintf("sha256:%x", sha256.Sum256(blob))
	resp, err := http.Post("http://"+addr+"/v2/app/blobs/uploads/?digest="+d, "application/octet-stream", bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("push: %s", resp.Status)
	}
	return "http://" + addr + "/v2/app/blobs/" + d
}

// TestEnvironmentExample holds deploy/flotilla.env to the flags of serve.
func TestEnvironmentExample(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "flotilla.env"))
	if err != nil {
		t.Fatal(err)
	}
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	serveFlags(flags, new(node.Config))
	flags.VisitAll(func(f *pflag.Flag) {
		if name := environmentName(f.Name); !bytes.Contains(b, []byte(name+"=")) {
			t.Errorf("deploy/flotilla.env does not show %s", name)
		}
	})
	for _, name := range regexp.MustCompile(`(?m)^#?(FLOTILLA_[A-Z_]+)=`).FindAllSubmatch(b, -1) {
		flag := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(string(name[1]), "FLOTILLA_"), "_", "-"))
		if flags.Lookup(flag) == nil {
			t.Errorf("deploy/flotilla.env shows %s, which is no setting", name[1])
		}
	}
}

func TestEnvironmentSetsFlags(t *testing.T) {
	t.Setenv("FLOTILLA_PEER_LISTEN", ":6001")
	t.Setenv("FLOTILLA_ZONE", "shop")
	t.Setenv("FLOTILLA_JOIN", "a:5002,b:5002")
	t.Setenv("FLOTILLA_SERVICE_HOST", "10.0.0.1")
	var cfg node.Config
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	serveFlags(flags, &cfg)
	if err := flags.Parse([]string{"--zone", "ship"}); err != nil {
		t.Fatal(err)
	}
	if err := fromEnvironment(flags, nil); err != nil {
		t.Fatal(err)
	}
	if cfg.PeerListen != ":6001" || cfg.Zone != "ship" || len(cfg.Join) != 2 {
		t.Errorf("peer-listen %q, zone %q, join %q", cfg.PeerListen, cfg.Zone, cfg.Join)
	}
	t.Setenv("FLOTILLA_REPLICAS", "many")
	if err := fromEnvironment(flags, nil); err == nil || !strings.Contains(err.Error(), "FLOTILLA_REPLICAS") {
		t.Errorf("error %v, want one that names the variable", err)
	}
}
