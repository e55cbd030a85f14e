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
	// trialMemory is how long a node that tried in vain leaves it at that.
	trialMemory = 10 * time.Second
)

// trial names a finished node from which m is to fetch a little, or nobody. Who
// takes from a finished node and is slow holds up all behind it, and no step
// tells: what is finished has no rate. So m, which keeps up with its neighbour,
// tries the source of that one; then whoever follows m does, should both be slow.
// Fetching as many bytes at full links takes longer than the line takes for
// them, so in a line where all is well nobody moves.
func (n *line) trial(m *member, now time.Time) string {
	from := n.nodes[m.from]
	if m.rate == 0 || now.Sub(m.moved) < 2*stepEvery || now.Before(n.tried[m.node]) {
		return ""
	}
	if from == nil || from.done || from.reached(now)-m.reached(now) >= slowGap {
		return ""
	}
	for range maxTries {
		above := n.nodes[from.from]
		switch {
		case above == nil || !above.active(now) || m.avoids(above.node, now):
			return ""
		case above.done:
			n.tried[m.node] = now.Add(trialMemory)
			return above.node
		case !now.Before(n.tried[from.node]): // its turn comes first
			return ""
		}
		from = above
	}
	return ""
}

// pass returns the finished node that m tried, if it is to take from that one
// instead of its neighbour.
func (n *line) pass(m *member, s step, now time.Time) *member {
	to := n.nodes[s.Tried]
	if to == nil || !to.done || !to.active(now) || m.avoids(to.node, now) || s.Speed <= trialTimes*m.rate {
		return nil
	}
	m.past = m.from
	return to
}

// settled takes down that the neighbour which m passed was slow, once m's own
// rate has proved it; else m finds its way back as any node that shares its
// neighbour.
func (n *line) settled(m *member, now time.Time) {
	past := n.nodes[m.past]
	if past == nil || now.Sub(m.moved) < 2*stepEvery {
		return
	}
	if m.rate > trialTimes*past.rate {
		n.slow[past.node] = now.Add(slowMemory)
	}
	m.past = ""
}

// try fetches a little of the blob from a node and returns how fast that came,
// in bytes a second: 0 where it did not.
func (h *hunt) try(ctx context.Context, node string, off int64) float64 {
	if !h.b.mayFollow(node) || h.why() != CausePull {
		return 0
	}
	begun := time.Now()
	body, _, err := h.b.ask(ctx, http.MethodGet, question{node: node, digest: h.digest, off: off, end: off + trialBytes, cause: CausePull})
	if err != nil {
		return 0
	}
	defer func() { _ = body.Close() }()
	got, _ := io.Copy(io.Discard, io.LimitReader(body, trialBytes)) // of a node that knows no end
	return float64(got) / time.Since(begun).Seconds()
}
