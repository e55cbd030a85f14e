package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
)

// operate asks a node for what only an operator may.
func (w *world) operate(ctx context.Context, n *rig.Node, method, path string, status int) (answer, error) {
	a, err := w.client.operate(ctx, n, method, path, w.rig.Secret(), time.Now().Add(w.ahead))
	return a, want(a, err, status)
}

// stateHash is the hash of all that a node has of the catalogue, its table of
// request ids too, and the index of the last entry in it.
type stateHash struct {
	Index  uint64 `json:"index"`
	SHA256 string `json:"sha256"`
}

func (w *world) stateHash(ctx context.Context, n *rig.Node) (h stateHash, err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	a, err := w.operate(ctx, n, http.MethodGet, "/flotilla/v1/statehash", http.StatusOK)
	if err != nil {
		return h, fmt.Errorf("%s: hash of the state: %w", n.Name, err)
	}
	return h, json.Unmarshal(a.body, &h)
}

// sameState has the clients wait and compares the replicas of some nodes: as soon as all are
// at one index, they must be equal there. Two that are at one index before that
// must be so too.
func (w *world) sameState(ctx context.Context, nodes []*rig.Node) {
	w.calm.Lock()
	defer w.calm.Unlock()
	var last error
	err := await(ctx, 30*time.Second, "all replicas are at one index", func() bool {
		at := map[uint64]stateHash{}
		for _, n := range nodes {
			h, err := w.stateHash(ctx, n)
			if err != nil {
				last = err
				return false
			}
			if other, ok := at[h.Index]; ok && other != h {
				w.fail("state", "at index %d %s has the state %.12s, another %.12s", h.Index, n.Name, h.SHA256, other.SHA256)
				return true
			}
			at[h.Index] = h
		}
		if len(at) > 1 {
			last = fmt.Errorf("they are at %d indexes", len(at))
			return false
		}
		for index := range at {
			w.report.add(func(r *report) { r.states = append(r.states, sameState{replicas: len(nodes), index: index}) })
		}
		return true
	})
	if err != nil && ctx.Err() == nil {
		w.fail("state", "%v: %v", err, last)
	}
}
