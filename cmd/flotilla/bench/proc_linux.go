package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// seesProcesses tells whether CPU time and memory of other processes can be read.
const seesProcesses = true

// jiffy is the unit of /proc/PID/stat: USER_HZ is 100 on every Linux (proc(5)).
const jiffy = 10 * time.Millisecond

// cpuTime is what the processes have used so far, in user and system mode.
func cpuTime(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, fmt.Errorf("no process %d", pid)
		}
		// The command's name, the second field, may hold blanks and parentheses.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		const utime, stime = 11, 12 // counted from the third field, the state
		if len(fields) <= stime {
			return 0, fmt.Errorf("process %d: short stat", pid)
		}
		for _, field := range []string{fields[utime], fields[stime]} {
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("process %d: stat: %w", pid, err)
			}
			sum += time.Duration(n) * jiffy
		}
	}
	return sum, nil
}

// resetPeak lets the peak of resident memory begin anew. It needs the right to
// write to the process; without, the peak is that since the process started.
func resetPeak(pids []int) bool {
	done := true
	for _, pid := range pids {
		const peakOnly = "5" // proc_pid_clear_refs(5)
		if os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte(peakOnly), 0) != nil {
			done = false
		}
	}
	return done
}

// peakMemory is the sum of the processes' peaks of resident memory.
func peakMemory(pids []int) (sum int64, err error) {
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, fmt.Errorf("no process %d", pid)
		}
		_, rest, found := strings.Cut(string(status), "VmHWM:")
		fields := strings.Fields(rest)
		if !found || len(fields) == 0 {
			return 0, fmt.Errorf("process %d: no peak of memory", pid)
		}
		n, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("process %d: status: %w", pid, err)
		}
		sum += n << 10
	}
	return sum, nil
}

// flushDisks writes out what earlier rounds left in the page cache, so that the
// next target does not pay for it.
func flushDisks() { syscall.Sync() }
