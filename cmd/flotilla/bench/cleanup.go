package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

// ledger holds what may exist on a target because of us, by repository. Entries
// are made before the request that creates the thing: one that was interrupted
// may have been carried out.
type ledger struct {
	mu    sync.Mutex
	repos map[string]*holdings
}

type holdings struct {
	uploads          []*url.URL
	tags             []string
	manifests, blobs []digest.Digest
}

func newLedger() *ledger { return &ledger{repos: map[string]*holdings{}} }

func (l *ledger) enter(repo string, add func(*holdings)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.repos[repo]
	if h == nil {
		h = &holdings{}
		l.repos[repo] = h
	}
	add(h)
}

func (l *ledger) upload(repo string, at *url.URL) {
	l.enter(repo, func(h *holdings) { h.uploads = append(h.uploads, at) })
}

func (l *ledger) tag(repo, tag string) {
	l.enter(repo, func(h *holdings) { h.tags = append(h.tags, tag) })
}

func (l *ledger) manifest(repo string, d digest.Digest) {
	l.enter(repo, func(h *holdings) { h.manifests = append(h.manifests, d) })
}

func (l *ledger) blob(repo string, d digest.Digest) {
	l.enter(repo, func(h *holdings) { h.blobs = append(h.blobs, d) })
}

// take removes and returns the holdings of all repositories but the kept ones.
func (l *ledger) take(keep func(repo string) bool) map[string]*holdings {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := map[string]*holdings{}
	for repo, h := range l.repos {
		if !keep(repo) {
			taken[repo] = h
			delete(l.repos, repo)
		}
	}
	return taken
}

// Remains says what cleaning up could not remove, and why. Tags without their
// manifests do not count: they went with them.
type Remains struct {
	Uploads   int      `json:"uploads,omitempty"`
	Tags      int      `json:"tags,omitempty"`
	Manifests int      `json:"manifests,omitempty"`
	Blobs     int      `json:"blobs,omitempty"`
	Reasons   []string `json:"reasons"` // the first of each kind
}

func (r *Remains) none() bool { return r.Uploads+r.Tags+r.Manifests+r.Blobs == 0 }

// clean deletes, in the order that no registry can object to: what names first,
// what is named after it. Tags go before manifests also because some registries
// search all tags of the repository for each manifest they delete.
func (st *stage) clean(ctx context.Context, keep func(repo string) bool) {
	st.disconnect()
	for name, h := range st.ledger.take(keep) {
		r := repository{name, st.ledger}
		at := func(kind string) func(*session, string) *url.URL {
			return func(s *session, reference string) *url.URL { return r.url(s, kind, reference) }
		}
		slices.Sort(h.manifests)
		slices.Sort(h.blobs)
		uploads := map[string]*url.URL{}
		var keys []string
		for _, u := range h.uploads {
			uploads[u.String()] = u
			keys = append(keys, u.String())
		}
		st.remains.Uploads += st.remove(ctx, "an upload", keys, func(_ *session, key string) *url.URL { return uploads[key] })
		tags := st.remove(ctx, "a tag", h.tags, at("manifests"))
		manifests := st.remove(ctx, "a manifest", texts(slices.Compact(h.manifests)), at("manifests"))
		if manifests > 0 {
			st.remains.Tags += tags
			st.remains.Manifests += manifests
		}
		st.remains.Blobs += st.remove(ctx, "a blob", texts(slices.Compact(h.blobs)), at("blobs"))
	}
	st.disconnect()
}

func texts(list []digest.Digest) []string {
	out := make([]string, len(list))
	for i, d := range list {
		out[i] = d.String()
	}
	return out
}

// remove deletes things of one kind and returns how many are left. A registry
// that does not allow it is asked once.
func (st *stage) remove(ctx context.Context, kind string, names []string, at func(*session, string) *url.URL) (left int) {
	if len(names) == 0 {
		return 0
	}
	if st.refused[kind] {
		return len(names)
	}
	var gone atomic.Int64
	attempt := func(ctx context.Context, s *session, i int) error {
		err := st.delete(ctx, s, at(s, names[i]))
		if err == nil {
			gone.Add(1)
		}
		return err
	}
	err := attempt(ctx, st.sessions[0], 0)
	st.note(kind, err)
	var status *statusError
	if errors.As(err, &status) && status.status != http.StatusTooManyRequests && status.status < 500 {
		st.refused[kind] = true
		return len(names)
	}
	var mu sync.Mutex
	err = st.spread(ctx, len(names)-1, st.opts.Workers, func(ctx context.Context, s *session, i int) error {
		err := attempt(ctx, s, i+1)
		mu.Lock()
		defer mu.Unlock()
		st.note(kind, err)
		return ctx.Err() // after any other failure, the rest may still go
	})
	st.note(kind, err)
	return len(names) - int(gone.Load())
}

func (st *stage) note(kind string, err error) {
	if err != nil && !st.noted[kind] {
		st.noted[kind] = true
		st.remains.Reasons = append(st.remains.Reasons, fmt.Sprintf("cannot delete %s: %v", kind, err))
	}
}

// delete takes any 2xx for done, and 404 for gone already.
func (st *stage) delete(ctx context.Context, s *session, u *url.URL) error {
	_, err := s.do(ctx, request{method: http.MethodDelete, url: u, want: http.StatusAccepted})
	var status *statusError
	if errors.As(err, &status) && (status.status/100 == 2 || status.status == http.StatusNotFound) {
		return nil
	}
	return err
}
