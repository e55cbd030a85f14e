package metadata

import "testing"

// TestEpochs: each recovery comes after all that it follows, and two that
// follow the same are not the same.
func TestEpochs(t *testing.T) {
	for _, row := range []struct {
		epoch      Epoch
		text       string
		recoveries uint32
	}{
		{1, "1", 0},
		{1 << 32, "2-00000000", 1},
		{1<<32 | 0x9f3a01c7, "2-9f3a01c7", 1},
		{7<<32 | 0xffffffff, "8-ffffffff", 7},
	} {
		if got := row.epoch.String(); got != row.text || row.epoch.Recoveries() != row.recoveries {
			t.Errorf("%d is %s after %d recoveries, want %s after %d", uint64(row.epoch), got, row.epoch.Recoveries(), row.text, row.recoveries)
		}
		seen := map[Epoch]bool{}
		for range 8 {
			next := row.epoch.next()
			if next <= row.epoch || next.Recoveries() != row.recoveries+1 {
				t.Errorf("%s comes after %s", next, row.epoch)
			}
			seen[next] = true
		}
		if len(seen) < 2 {
			t.Errorf("all recoveries after %s begin %v", row.epoch, seen)
		}
	}
}
