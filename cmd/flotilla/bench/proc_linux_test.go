package bench

import (
	"os"
	"strconv"
	"testing"
	"time"
)

func TestProcess(t *testing.T) {
	self := []int{os.Getpid()}
	before, err := cpuTime(self)
	if err != nil {
		t.Fatal(err)
	}
	// Burn at least two jiffies, however busy the machine is.
	for deadline := time.Now().Add(20 * time.Second); ; {
		now, err := cpuTime(self)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("no CPU time seen: %v, error %v", now, err)
		}
		if now >= before+2*jiffy {
			break
		}
	}
	resetPeak(self)
	one, err := peakMemory(self)
	if err != nil || one < 1<<20 {
		t.Errorf("peak of %d bytes, error %v", one, err)
	}
	// A peak of the sum is at most one that only grew since.
	if two, err := peakMemory([]int{self[0], self[0]}); err != nil || two < 2*one {
		t.Errorf("two processes: %d bytes, one %d, error %v", two, one, err)
	}
	const nobody = 1 << 30
	if _, err := cpuTime([]int{nobody}); err == nil {
		t.Error("CPU time of no process")
	}
	if _, err := peakMemory([]int{nobody}); err == nil {
		t.Error("memory of no process")
	}
}

func TestReportHasServer(t *testing.T) {
	r := newRegistry(t)
	o := tiny(r.URL, r.URL)
	o.PIDs, o.Workloads = []string{"", strconv.Itoa(os.Getpid())}, []string{"push-monolithic"}
	report, err := measureJSON(t, t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if report.Results[0].Server != nil || report.Results[1].Server == nil || report.Results[1].Server.PeakBytes == 0 {
		t.Errorf("server figures: %+v and %+v", report.Results[0].Server, report.Results[1].Server)
	}
}
