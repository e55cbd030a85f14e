package rig

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A process asks for the time in the vDSO: code of the kernel in its own memory,
// which is private to it and may be changed by whoever may trace it. No other
// way leads to one process's clocks: time namespaces have no wall clock and are
// for processes yet to come, and a static program loads no library that could
// stand between.

// clocks are how many seconds a process's clocks are ahead of the machine's.
type clocks struct{ wall, monotonic int64 }

// code is clock_gettime for such clocks in machine code: the system call, and
// then, for CLOCK_REALTIME (0) and CLOCK_MONOTONIC (1) alone, the addition.
//
//	mov  $228, %eax
//	syscall
//	cmp  $1, %edi
//	ja   done
//	mov  $wall, %rcx
//	jb   add
//	mov  $monotonic, %rcx
//	add:  add %rcx, (%rsi)
//	done: ret
func (c clocks) code() []byte {
	code := []byte{0xb8, 0xe4, 0, 0, 0, 0x0f, 0x05, 0x83, 0xff, 0x01, 0x77, 0x19, 0x48, 0xb9}
	code = binary.LittleEndian.AppendUint64(code, uint64(c.wall))
	code = append(code, 0x72, 0x0a, 0x48, 0xb9)
	code = binary.LittleEndian.AppendUint64(code, uint64(c.monotonic))
	return append(code, 0x48, 0x01, 0x0e, 0xc3)
}

func clockLacks() string { return "" }

// SetClock steps the node's wall clock to so far ahead of the machine's, until
// its process ends.
func (n *Node) SetClock(ahead time.Duration) error {
	return n.step(func(c *clocks) { c.wall = int64(ahead / time.Second) })
}

// Age makes the node's process older than it is: all timers that were to end in
// that time end now. The wall clock stays.
func (n *Node) Age(by time.Duration) error {
	return n.step(func(c *clocks) { c.monotonic += int64(by / time.Second) })
}

func (n *Node) step(change func(*clocks)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.run == nil {
		return fmt.Errorf("%s does not run", n.Name)
	}
	change(&n.run.clocks)
	return n.run.clocks.set(n.run.cmd.Process.Pid)
}

// set changes the code by which a process asks for the time.
func (c clocks) set(pid int) error {
	begin, size, err := vdso(pid)
	if err != nil {
		return err
	}
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	library := make([]byte, size)
	if _, err := memory.ReadAt(library, int64(begin)); err != nil {
		return fmt.Errorf("read the vDSO: %w", err)
	}
	code := c.code()
	at, err := function(library, "__vdso_clock_gettime", len(code))
	if err != nil {
		return err
	}
	// No thread may be within the code that changes.
	for range 1000 {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			return err
		}
		free, err := away(pid, begin, begin+size)
		if err == nil && free {
			_, err = memory.WriteAt(code, int64(begin+at))
		}
		if err = errors.Join(err, syscall.Kill(pid, syscall.SIGCONT)); err != nil || free {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("some thread always asks for the time")
}

// vdso is where a process has it.
func vdso(pid int) (begin, size uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(b)) {
		var end uint64
		if strings.Contains(line, "[vdso]") {
			_, err := fmt.Sscanf(line, "%x-%x", &begin, &end)
			return begin, end - begin, err
		}
	}
	return 0, 0, errors.New("the process has no vDSO")
}

// function finds one of at least so many bytes in a shared library.
func function(library []byte, name string, least int) (at uint64, err error) {
	f, err := elf.NewFile(bytes.NewReader(library))
	if err != nil {
		return 0, fmt.Errorf("the vDSO: %w", err)
	}
	symbols, err := f.DynamicSymbols()
	if err != nil {
		return 0, fmt.Errorf("the vDSO: %w", err)
	}
	for _, s := range symbols {
		if s.Name == name && s.Size >= uint64(least) {
			return s.Value, nil
		}
	}
	return 0, fmt.Errorf("the vDSO has no %s of %d bytes", name, least)
}

// away reports whether a stopped process has no thread in that range.
func away(pid int, begin, end uint64) (bool, error) {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range threads {
		// "NUMBER ... SP PC" in a system call, "-1 SP PC" elsewhere, "running" before it has stopped.
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/syscall", pid, t.Name()))
		if err != nil {
			return false, err
		}
		words := strings.Fields(string(b))
		if len(words) < 3 {
			return false, nil
		}
		pc, err := strconv.ParseUint(words[len(words)-1], 0, 64)
		if err != nil || pc >= begin && pc < end {
			return false, err
		}
	}
	return true, err
}
