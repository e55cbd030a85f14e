package node

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// TestZoneTraffic: what goes from one zone to another keeps to the rate, and
// every node's status and the metrics tell how much it was.
func TestZoneTraffic(t *testing.T) {
	const size = 1 << 20
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.ZoneRate = "512KiB"
		cfg.Zone = map[string]string{"n0": "a", "n1": "b", "n2": "b"}[cfg.Name]
	})
	img := newImage(size)
	began := time.Now()
	c.push(0, "app", "v1", img)
	if took := time.Since(began); took < 1500*time.Millisecond {
		t.Errorf("two seconds' bytes were pushed to zone b in %v", took)
	}
	for i := range c.nodes {
		c.pull(i, "app", "v1", img)
	}
	figure := regexp.MustCompile(`(?m)^flotilla_zone_(sent_)?bytes_total\{cause="(\w+)",from="(\w+)",to="(\w+)"\} (\S+)$`)
	c.await("the metrics show it", func() error {
		sums := map[string]float64{}
		for i := range c.nodes {
			for _, m := range figure.FindAllStringSubmatch(string(c.do(i, http.StatusOK, http.MethodGet, "/metrics", nil).body), -1) {
				n, err := strconv.ParseFloat(m[5], 64)
				if err != nil {
					return err
				}
				sums[m[1]+m[3]+">"+m[4]] += n
			}
		}
		if sums["a>b"] < size || sums["sent_a>b"] < size || len(sums) > 4 {
			return fmt.Errorf("of %d bytes: %v", size, sums)
		}
		return nil
	})
	for i := range c.nodes {
		c.await("the status shows it", func() error {
			var s Status
			if err := json.Unmarshal(c.do(i, http.StatusOK, http.MethodGet, "/flotilla/v1/status", nil).body, &s); err != nil {
				return err
			}
			for _, z := range s.Zones {
				if z.From == "a" && z.To == "b" && z.Pull+z.Push+z.Repair+z.Rebalance >= size {
					return nil
				}
			}
			return fmt.Errorf("node %d: %+v", i, s.Zones)
		})
	}
}
