//go:build !linux

package bench

import "time"

const seesProcesses = false

func cpuTime([]int) (time.Duration, error) { return 0, nil }

func resetPeak([]int) bool { return false }

func peakMemory([]int) (int64, error) { return 0, nil }

func flushDisks() {}
