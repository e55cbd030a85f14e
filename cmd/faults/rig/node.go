package rig

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Node is one node: a line, a disk, and a process or none.
type Node struct {
	Name string
	Host string // its address
	Zone string // "" where the rig has none

	number      int
	rig         *Rig
	binary      string
	data, image string

	mu   sync.Mutex
	run  *process
	ends []string // what processes said that ended by themselves
}

// process is one life of a node.
type process struct {
	cmd    *exec.Cmd
	over   chan struct{} // closed when it has ended
	wanted bool          // its end is: guarded by Node.mu, as are its clocks
	clocks clocks
}

// URL is where clients reach the node.
func (n *Node) URL() string { return "http://" + n.Host + ":5000" }

// Start runs the node's process, with the flags it always has. It does not
// wait until the node serves.
func (n *Node) Start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.run != nil {
		return fmt.Errorf("%s runs already", n.Name)
	}
	log, err := os.OpenFile(n.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	args := []string{"--net=/run/netns/" + n.Name, n.binary, "serve", "--name", n.Name, "--data", n.data,
		"--listen", n.Host + ":5000", "--peer-listen", n.Host + ":5001", "--gossip-listen", n.Host + ":5002", "--advertise", n.Host,
		"--weight", "16", "--scrub-rate", "4GiB", "--secret-file", n.rig.Secret()}
	if n.Zone != "" {
		args = append(args, "--zone", n.Zone)
	}
	if n.number == 1 {
		args = append(args, n.rig.cfg.Flags...)
	}
	if n.number > 1 || n.founded() {
		for _, other := range n.rig.nodes {
			if other != n {
				args = append(args, "--join", other.Host+":5002")
			}
		}
	}
	p := &process{cmd: exec.Command("nsenter", args...), over: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for us alone
	if err := p.cmd.Start(); err != nil {
		return err
	}
	n.run = p
	go n.watch(p)
	return nil
}

// Use has the node run another binary from its next start on.
func (n *Node) Use(binary string) { n.binary = binary }

// founded tells node 1 that its mesh exists, also after its disk was wiped.
func (n *Node) founded() bool {
	_, err := os.Stat(n.rig.Secret())
	return err == nil
}

// Binary is flotilla.
func (r *Rig) Binary() string { return r.cfg.Binary }

// Secret is the file with the mesh's secret, which node 1 makes.
func (r *Rig) Secret() string { return filepath.Join(r.cfg.Dir, "mesh.secret") }

// watch waits for a process to end, and notes it if nobody wanted that.
func (n *Node) watch(p *process) {
	err := p.cmd.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !p.wanted {
		n.ends = append(n.ends, fmt.Sprintf("%s ended by itself (%v): %s", n.Name, err, n.lastWords()))
	}
	if n.run == p {
		n.run = nil
	}
	close(p.over)
}

// lastWords is the end of the node's log.
func (n *Node) lastWords() string {
	b, err := os.ReadFile(n.Log())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b[max(0, len(b)-4096):])), "\n")
	return lines[len(lines)-1]
}

// Ends returns what was noted of processes that ended by themselves since it
// was last asked.
func (n *Node) Ends() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	ends := n.ends
	n.ends = nil
	return ends
}

// Runs reports whether the node's process runs, paused or not.
func (n *Node) Runs() bool { return n.process() != nil }

func (n *Node) process() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.run
}

// signal sends s to the process, if there is one; last says that it will end.
func (n *Node) signal(s syscall.Signal, last bool) *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.run
	if p == nil {
		return nil
	}
	p.wanted = p.wanted || last
	_ = p.cmd.Process.Signal(s) // it may have ended just now
	return p
}

// Kill ends the process at once, and returns when it has ended.
func (n *Node) Kill() {
	if p := n.signal(syscall.SIGKILL, true); p != nil {
		<-p.over
	}
}

// Stop ends the process in good order.
func (n *Node) Stop(ctx context.Context) error {
	p := n.signal(syscall.SIGTERM, true)
	if p == nil {
		return nil
	}
	select {
	case <-p.over:
		if code := p.cmd.ProcessState.ExitCode(); code != 0 {
			return fmt.Errorf("%s stopped with status %d: %s", n.Name, code, n.lastWords())
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(60 * time.Second):
		n.Kill()
		return fmt.Errorf("%s did not stop within a minute", n.Name)
	}
}

// Pause stops the process where it is; Resume lets it go on.
func (n *Node) Pause()  { n.signal(syscall.SIGSTOP, false) }
func (n *Node) Resume() { n.signal(syscall.SIGCONT, false) }

// MayEnd says that the process, if there is one, may end by itself now.
func (n *Node) MayEnd() { n.mayEnd() }

func (n *Node) mayEnd() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.run != nil {
		n.run.wanted = true
	}
	return n.run
}

// Ended waits until the process has ended by itself, which is what is expected
// of it now.
func (n *Node) Ended(ctx context.Context) error {
	p := n.mayEnd()
	if p == nil {
		return nil
	}
	select {
	case <-p.over:
		return nil
	case <-ctx.Done():
		n.mu.Lock()
		defer n.mu.Unlock()
		p.wanted = false
		return fmt.Errorf("%s goes on: %w", n.Name, ctx.Err())
	}
}
