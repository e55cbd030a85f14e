package metadata

import (
	"bytes"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

const (
	hotBytes = 4 << 20 // bounds what hot holds, about
	hotEntry = 512     // what an entry takes beside the body
)

// hot holds manifests that were asked for by tag, since most requests ask for a
// few of them. It never holds one that the database does not: whatever a write
// touches is forgotten before the write shows, and what was read before or while
// it came to show is not kept.
//
// It forgets by repository. That is more than needed, but needs to know nothing
// of the rules by which an entry changes tags and manifests.
type hot struct {
	mu      sync.Mutex
	repos   map[string]map[string]Manifest // by repository and tag
	size    int                            // of all of them, about
	changes uint64                         // writes begun and ended, so odd during one
}

// find returns what a tag names, if that is held; if not, since is for keep.
func (h *hot) find(repo, tag string) (m Manifest, ok bool, since uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m, ok = h.repos[repo][tag]
	return m, ok, h.changes
}

// keep holds m, read from the database after a find that gave since. When it is
// full it starts anew: what is asked for often is soon back.
func (h *hot) keep(repo, tag string, m Manifest, since uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if since != h.changes || since%2 != 0 {
		return
	}
	if h.repos == nil || h.size > hotBytes {
		h.repos, h.size = map[string]map[string]Manifest{}, 0
	}
	if h.repos[repo] == nil {
		h.repos[repo] = map[string]Manifest{}
	}
	if _, ok := h.repos[repo][tag]; !ok { // two may have read it at once
		h.size += len(m.Body) + hotEntry
	}
	h.repos[repo][tag] = m
}

// changing comes before b is written, or with nil, before the whole database is
// replaced; changed comes after.
func (h *hot) changing(b *pebble.Batch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changes++
	if b == nil {
		h.repos = nil
		return
	}
	if len(h.repos) == 0 {
		return
	}
	for writes := b.Reader(); ; {
		_, key, _, ok, err := writes.Next()
		if err != nil { // Commit will say so
			h.repos = nil
		}
		if !ok {
			return
		}
		if len(key) > 0 && key[0] == keyRepo {
			repo, _, _ := bytes.Cut(key[1:], []byte{0})
			h.forget(string(repo))
		}
	}
}

func (h *hot) forget(repo string) {
	for _, m := range h.repos[repo] {
		h.size -= len(m.Body) + hotEntry
	}
	delete(h.repos, repo)
}

func (h *hot) changed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changes++
}
