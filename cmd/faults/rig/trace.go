package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// FailSyncs has every fsync of the node's process fail with EIO from now on,
// until end is called or the process is gone.
func (n *Node) FailSyncs(ctx context.Context) (end func(), err error) {
	return n.trace(ctx, "error=EIO")
}

// HangSyncs has every fsync of the node's process begin only after a while.
func (n *Node) HangSyncs(ctx context.Context, d time.Duration) (end func(), err error) {
	return n.trace(ctx, fmt.Sprintf("delay_enter=%d", d.Microseconds()))
}

func (n *Node) trace(ctx context.Context, how string) (end func(), err error) {
	p := n.process()
	if p == nil {
		return nil, fmt.Errorf("%s does not run", n.Name)
	}
	const syncs = "fsync,fdatasync,sync_file_range,msync"
	pid := p.cmd.Process.Pid
	cmd := exec.Command("strace", "-f", "-o", n.rig.cfg.Dir+"/"+n.Name+".strace", "-p", fmt.Sprint(pid), "-e", "trace="+syncs, "-e", "inject="+syncs+":"+how)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	over := make(chan struct{})
	go func() { _ = cmd.Wait(); close(over) }()
	end = func() { // and once more does no harm
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-over:
		case <-time.After(2 * time.Second): // it waits for a system call of the traced to end
			_ = cmd.Process.Kill()
			<-over
		}
	}
	for !traced(pid) {
		select {
		case <-over:
			return nil, errors.New("strace: " + said.String())
		case <-ctx.Done():
			end()
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	return end, nil
}

// traced reports whether somebody traces all threads of a process.
func traced(pid int) bool {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return false
	}
	for _, t := range threads {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, t.Name()))
		if err != nil || strings.Contains(string(b), "TracerPid:\t0\n") {
			return false
		}
	}
	return true
}
