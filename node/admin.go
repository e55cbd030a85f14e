package node

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/metadata"
)

// collectPath is where a member asks another to begin a round of collection.
const collectPath = "/node/collect"

// member returns the member that people call name.
func (n *Node) member(name string) (metadata.Member, error) {
	for _, m := range n.catalog.Members() {
		if m.Name == name || m.ID == name {
			return m, nil
		}
	}
	return metadata.Member{}, oci.ErrNotFound.Because("the mesh has no member called %.80q", name)
}

// Drain implements api.Members.
func (n *Node) Drain(ctx context.Context, name string, on bool) error {
	m, err := n.member(name)
	if err != nil {
		return err
	}
	if on && !slices.ContainsFunc(n.catalog.Members(), func(o metadata.Member) bool {
		return o.ID != m.ID && o.Weight > 0 && !o.Draining && !o.Out
	}) {
		return oci.ErrDenied.Because("no other member owns blobs: nobody could take over from %s", m.Name)
	}
	return n.catalog.Drain(ctx, m.ID, on)
}

// Remove implements api.Members.
func (n *Node) Remove(ctx context.Context, name string) error {
	m, err := n.member(name)
	if err != nil {
		return err
	}
	if len(n.catalog.Members()) == 1 {
		return oci.ErrDenied.Because("%s is the only member: stop it, and the mesh is gone", m.Name)
	}
	return n.catalog.Remove(ctx, m.ID)
}

// Garbage is what a round of collection would drop now.
type Garbage struct {
	Entries []GarbageEntry `json:"entries"`
	More    bool           `json:"more"`             // Entries is not all
	Silent  []string       `json:"silent,omitempty"` // names of members that did not say
}

// GarbageEntry is one name, or one node's copy of a blob.
type GarbageEntry struct {
	Kind   string        `json:"kind"`  // link, manifest, bytes
	Where  string        `json:"where"` // the repository, or the node
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"` // -1 where it is not known
	Since  time.Time     `json:"since"`
	Why    string        `json:"why"`
}

// Garbage implements api.Collector. Names come first: bytes go only once
// nothing names them.
func (n *Node) Garbage(ctx context.Context, most int) (any, error) {
	if err := n.catalog.Sync(ctx); err != nil {
		return nil, err
	}
	names, err := n.catalog.Expirable(ctx, time.Now(), most+1)
	if err != nil {
		return nil, err
	}
	g := Garbage{Entries: []GarbageEntry{}}
	for _, c := range names {
		g.Entries = append(g.Entries, GarbageEntry{Kind: c.Kind, Where: c.Repo, Digest: c.Digest, Size: -1, Since: c.Since, Why: c.Why})
	}
	for _, m := range n.catalog.Members() {
		if len(g.Entries) > most {
			break
		}
		copies, err := n.blobs.GarbageOf(ctx, m.ID, most+1-len(g.Entries))
		if err != nil {
			g.Silent = append(g.Silent, m.Name)
		}
		if len(copies) > mesh.MaxCandidates {
			copies, g.More = copies[:mesh.MaxCandidates], true
		}
		for _, c := range copies {
			g.Entries = append(g.Entries, GarbageEntry{Kind: "bytes", Where: m.Name, Digest: c.Digest, Size: c.Size, Since: c.Used, Why: c.Why})
		}
	}
	if len(g.Entries) > most {
		g.Entries, g.More = g.Entries[:most], true
	}
	return g, nil
}

// Collect implements api.Collector. Every member that seems alive begins a
// round; one that cannot be asked has its own turn soon.
func (n *Node) Collect(ctx context.Context) error {
	n.blobs.Wake()
	var asking sync.WaitGroup
	for _, id := range n.members.Alive() {
		if id == n.id() {
			continue
		}
		asking.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+id+collectPath, nil)
			if err != nil {
				return
			}
			resp, err := n.dialer.client(true).Do(req)
			if err != nil {
				n.log.Info("a member begins no round of collection", "member", id, "error", err)
				return
			}
			_ = resp.Body.Close()
		})
	}
	asking.Wait()
	return nil
}

// KeepUntagged implements api.Collector.
func (n *Node) KeepUntagged(ctx context.Context, d time.Duration) error {
	return n.catalog.SetPolicy(ctx, metadata.Policy{UntaggedAfter: d})
}

// BeginScrub implements api.Checker. While a round runs, another follows it.
func (n *Node) BeginScrub() {
	select {
	case n.scrubDue <- struct{}{}:
	default: // one is due already
	}
}

// StateHash implements api.Checker.
func (n *Node) StateHash(ctx context.Context) (index uint64, hash string, err error) {
	return n.catalog.StateHash(ctx)
}

// memberHandler serves what members ask each other beside names and bytes.
func (n *Node) memberHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+collectPath, func(http.ResponseWriter, *http.Request) { n.blobs.Wake() })
	return mux
}
