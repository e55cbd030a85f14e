package mesh

import (
	"context"
	"io"
	"net/http"
	"time"
)

const (
	// trialBytes is how much a trial fetches: enough to outlast the first round
	// trips of a connection, little beside what it may gain.
	trialBytes = 128 << 10
	// trialTimes is how much faster a trial has to be than the line.
	trialTimes = 2
	// trialMemory is how long a node that tried leaves it at that.
	trialMemory = 10 * time.Second
)

// first returns who takes from a finished node what m gets over at most a few
// others, and nobody where that cannot be told, or its rate not yet.
func (n *line) first(m *member, now time.Time) *member {
	for range maxTries {
		first := n.nodes[m.from]
		if first == nil || first.done || !first.active(now) {
			return nil
		}
		if above := n.nodes[first.from]; above != nil && above.done {
			if first.at < trialBytes || first.rate == 0 || now.Sub(first.moved) < 4*stepEvery {
				return nil
			}
			return first
		}
		m = first
	}
	return nil
}

// trial names a finished node from which m is to fetch a little, or nobody. Who
// is first behind a finished node and slow holds up all behind it, and no step
// tells: what is finished has no rate. So who follows it tries its source; then,
// had that one no luck, whoever follows that one: both may be slow. Fetching a
// little through a full link takes longer than the line takes for it, so where
// all is well nobody moves.
func (n *line) trial(m *member, now time.Time) string {
	first := n.first(m, now)
	if first == nil || now.Sub(m.trial) < trialMemory || now.Before(n.vain[m.node]) {
		return ""
	}
	if m.from != first.node && !now.Before(n.vain[m.from]) {
		return ""
	}
	if n.takers(m, 0, now)[m.from] > 0 { // which halves what m gets
		return ""
	}
	if m.avoids(first.from, now) || !n.nodes[first.from].active(now) {
		return ""
	}
	m.trial = now
	return first.from
}

// pass returns the finished node that m has tried, if m is to take from that
// one: it gave more than the first gets.
func (n *line) pass(m *member, s step, now time.Time) *member {
	if s.Tried == "" {
		return nil
	}
	first := n.first(m, now)
	if first == nil || first.from != s.Tried || s.Speed <= trialTimes*first.rate {
		n.vain[m.node] = now.Add(trialMemory)
		return nil
	}
	m.past = first.node
	return n.nodes[s.Tried]
}

// settled judges the node that m passed once m's own rate says whether it is
// slow. If it is not, m goes back to it, as far as it is ahead.
func (n *line) settled(m *member, now time.Time) *member {
	past := n.nodes[m.past]
	if past == nil || now.Sub(m.moved) < 2*stepEvery {
		return nil
	}
	m.past = ""
	if m.rate > trialTimes*past.rate {
		n.slow[past.node] = now.Add(slowMemory)
		return nil
	}
	if past.node == m.from || !past.serves(m, n.fed(m), now) {
		return nil
	}
	return past
}

// try fetches a little of the blob from a node, for a second at most, and returns
// how fast that came, in bytes a second: 0 where it did not.
func (h *hunt) try(ctx context.Context, node string, off int64) float64 {
	if !h.b.mayFollow(node) || h.why() != CausePull {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, 4*stepEvery)
	defer cancel()
	begun := time.Now()
	body, _, err := h.b.ask(ctx, http.MethodGet, question{node: node, digest: h.digest, off: off, end: off + trialBytes, cause: CausePull})
	if err != nil {
		return 0
	}
	defer func() { _ = body.Close() }()
	got, _ := io.Copy(io.Discard, io.LimitReader(body, trialBytes)) // of a node that knows no end
	return float64(got) / time.Since(begun).Seconds()
}
