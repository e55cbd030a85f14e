package mesh

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	// distrustTime is how long a node that sent wrong bytes of a blob is asked
	// for that blob last. Its copy may be mended in the meantime, and where it
	// is not, one more download fails before the node is asked last again.
	distrustTime = 10 * time.Minute
	// maxDoubts bounds the memory; beyond it the oldest doubt goes.
	maxDoubts = 1024
)

// distrust is who sent wrong bytes of what: one damaged copy must not hide the
// good ones for ever. It is a matter of order only; whoever is doubted is still
// asked when nobody else serves. The zero value is ready.
type distrust struct {
	mu   sync.Mutex
	when map[doubt]time.Time
}

type doubt struct {
	node   string
	digest digest.Digest
}

// add reports whether the doubt is new.
func (t *distrust) add(k doubt, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	at, known := t.when[k]
	if t.when == nil {
		t.when = map[doubt]time.Time{}
	}
	if !known && len(t.when) == maxDoubts {
		oldest, first := doubt{}, now
		for k, at := range t.when {
			if !at.After(first) {
				oldest, first = k, at
			}
		}
		delete(t.when, oldest)
	}
	t.when[k] = now
	return !known || now.Sub(at) >= distrustTime
}

// of returns who is doubted about d, and since when.
func (t *distrust) of(d digest.Digest) map[string]time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	var nodes map[string]time.Time
	for k, at := range t.when {
		switch {
		case time.Since(at) >= distrustTime:
			delete(t.when, k)
		case k.digest == d:
			if nodes == nil {
				nodes = map[string]time.Time{}
			}
			nodes[k.node] = at
		}
	}
	return nodes
}

// doubt has node asked last for d from now on, and says so once.
func (b *Blobs) doubt(node string, d digest.Digest, why string) {
	if b.distrust.add(doubt{node, d}, time.Now()) {
		b.log.Warn("a node's copy of a blob is in doubt, asking it last", "node", node, "digest", d, "why", why)
	}
}

// delivery is what one node sends of a blob.
type delivery struct {
	io.ReadCloser
	h    *hunt
	node string
	size int64 // of the blob
}

// deliver wraps what node sends.
func (h *hunt) deliver(body io.ReadCloser, node string) *delivery {
	h.spot.mu.Lock()
	defer h.spot.mu.Unlock()
	h.spot.body, h.spot.source = body, node
	y := &delivery{ReadCloser: body, h: h, node: node, size: h.size}
	h.b.inbound.begin(y)
	return y
}

func (y *delivery) Read(p []byte) (int, error) {
	n, err := y.ReadCloser.Read(p)
	if n > 0 {
		y.h.vouched[y.node] = true
		y.h.spot.at.Add(int64(n))
		y.h.tell(false)
	}
	return n, err
}

// Close comes once from whoever reads, also where a move has ended the body.
func (y *delivery) Close() error {
	y.h.b.inbound.end(y)
	y.h.spot.mu.Lock()
	y.h.spot.body = nil
	y.h.spot.mu.Unlock()
	if y.h.size > smallBlob && y.h.size == y.h.spot.at.Load() {
		y.h.tell(true)
	}
	y.h.part()
	return y.ReadCloser.Close()
}

// Held reports whether what comes is held back by a rate, see crossing.
func (y *delivery) Held() bool {
	c, ok := y.ReadCloser.(*crossing)
	return ok && c.Held()
}

// Lied is called by whoever put the whole blob together and found it wrong.
func (y *delivery) Lied() { y.h.lied() }

// lied doubts everyone who had a part in the blob: one of them was wrong. The
// next download takes all of it from one node and knows more.
func (h *hunt) lied() {
	why := "it sent wrong bytes"
	if n := len(h.vouched); n > 1 {
		why = fmt.Sprintf("it or another of %d nodes sent wrong bytes", n)
	}
	for id := range h.vouched {
		h.b.doubt(id, h.digest, why)
	}
}
