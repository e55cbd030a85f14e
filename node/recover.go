package node

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/flotilla-registry/flotilla/metadata"
)

// Recovery says how a stopped node goes on after the mesh lost its quorum for
// good.
type Recovery struct {
	Data string // data folder of this node
	// Voters names the members that stay, the same at each of them. What the
	// first one's catalogue holds is what counts from then on.
	Voters []string
	Yes    bool // do it; else only look
	Log    *slog.Logger
}

// Recovered is what a node's folder holds, and what was done, or would be.
type Recovered struct {
	Name         string         // of this node
	Mesh         string         // UUID
	Epoch        metadata.Epoch // the one that this node is of now
	Index, Term  uint64         // of the last entry that its log held
	Written      time.Time      // when the last command was given
	First        bool           // its catalogue counts; else it is set aside
	Aside        string         // where it is then
	Kept, Buried []string       // names of members
}

// Recover begins a new epoch of the mesh, in which the members that are not
// named have no place, or takes this node into it. All nodes that are named must
// be stopped. It may be repeated, should it be interrupted.
func Recover(r Recovery) (Recovered, error) {
	if _, err := os.Stat(r.Data); err != nil {
		return Recovered{}, fmt.Errorf("data folder: %w", err)
	}
	f, err := openFolder(r.Data)
	if err != nil {
		return Recovered{}, err
	}
	defer f.close()
	cfg := metadata.RecoverConfig{Dir: f.path(catalogFolder), ID: f.known().ID, DryRun: true, Log: r.Log}
	seen, err := metadata.Recover(cfg)
	if err != nil {
		return Recovered{}, err
	}
	name, keep, err := r.choose(seen, cfg.ID)
	if err != nil {
		return Recovered{}, err
	}
	known := f.known()
	out := Recovered{
		Name: name, Mesh: seen.Cluster.ID, Epoch: known.Epoch, First: name == r.Voters[0],
		Index: seen.Index, Term: seen.Term, Written: seen.LogTime,
	}
	for _, m := range append(seen.Kept, seen.Buried...) {
		if slices.Contains(keep, m.ID) {
			out.Kept = append(out.Kept, m.Name)
		} else {
			out.Buried = append(out.Buried, m.Name)
		}
	}
	slices.Sort(out.Kept)
	slices.Sort(out.Buried)
	if !r.Yes {
		return out, nil
	}
	if out.First {
		// The folder names the new epoch last: a node that was interrupted
		// does not start, and finds out here how far it came.
		mesh := seen.Cluster
		if seen.Unfinished || mesh.Epoch == known.Epoch {
			cfg.DryRun, cfg.Keep = false, keep
			if seen, err = metadata.Recover(cfg); err != nil {
				return out, err
			}
			mesh = seen.Cluster
		}
		out.Epoch = mesh.Epoch
		return out, f.enter(mesh, false)
	}
	if err := f.giveUp(seen.Cluster); err != nil {
		return out, err
	}
	out.Aside, err = metadata.SetAside(cfg.Dir)
	return out, err
}

// choose returns this node's name and the UUIDs of all that stay.
func (r Recovery) choose(seen metadata.Recovered, id string) (name string, keep []string, err error) {
	if len(r.Voters) == 0 {
		return "", nil, errors.New("name the members that stay")
	}
	ids := map[string]string{} // by name
	for _, m := range append(seen.Kept, seen.Buried...) {
		ids[m.Name] = m.ID
		if m.ID == id {
			name = m.Name
		}
	}
	for _, v := range r.Voters {
		if ids[v] == "" {
			return "", nil, fmt.Errorf("the mesh, as this node knew it, had no member called %s", v)
		}
		keep = append(keep, ids[v])
	}
	if !slices.Contains(keep, id) {
		return "", nil, fmt.Errorf("this node, %s, is not among those that stay: it comes back with an empty data folder, as a new one", name)
	}
	return name, keep, nil
}
