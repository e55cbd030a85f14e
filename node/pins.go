package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/metadata"
)

// Pins are settings of the mesh, one each. What they come to is nowhere written
// down: which blobs a pin is about is found out from the catalogue, one by one,
// when a pass looks at them, and a manifest at a time when it is stored.

const (
	pinPrefix = "pin/" // and a hash of the pin: an api.Pin in JSON

	maxPins  = 256  // in a mesh; each may be tried on every blob
	maxNamed = 1000 // manifests stored that wait to be fetched; beyond them a pass does
	maxRepos = 1000 // repositories whose pins are remembered while blobs are looked at
)

// Pin says what a zone is to hold always.
type Pin = api.Pin

// PinChange answers a change of the pins.
type PinChange = api.PinChange

// pin is a Pin made ready to be asked.
type pin struct {
	Pin
	repos oci.Pattern
}

// takes reports whether the pin is about an image of a repository that it
// matches, by one of the image's tags; "" is for the repository as a whole.
func (p *pin) takes(tag string) bool {
	return p.Tag == "" || tag == metadata.AnyTag || tag != "" && oci.MatchTag(p.Tag, tag)
}

// pinSet is one reading of all pins; it never changes.
type pinSet struct {
	version uint64
	all     []pin // in order
	own     []pin // those of this node's zone
}

// pins knows the pins as this node's replica has them, and fetches what its zone
// pins as soon as it is named.
type pins struct {
	zone    string
	log     *slog.Logger
	catalog *metadata.Catalog // set before anything but heard is called

	last    atomic.Pointer[pinSet]
	loading sync.Mutex // held by whoever makes the next

	named   chan named    // manifests to look at
	changed chan struct{} // capacity 1: pins may have changed, or manifests were missed
	missed  atomic.Bool
}

// named is a manifest that was stored, or given a tag.
type named struct {
	repo   string
	digest digest.Digest
}

func newPins(zone string, log *slog.Logger) *pins {
	p := &pins{zone: zone, log: log, named: make(chan named, maxNamed), changed: make(chan struct{}, 1)}
	p.changed <- struct{}{}
	return p
}

// heard is the catalogue's OnNamed. Where this zone pins nothing of the
// repository it comes to nothing at once.
func (p *pins) heard(repo string, d digest.Digest) {
	if repo != "" {
		set := p.last.Load()
		if set == nil || len(set.own) == 0 || len(about(set.own, repo)) == 0 {
			return
		}
		select {
		case p.named <- named{repo, d}:
			return
		default:
			p.missed.Store(true)
		}
	}
	select {
	case p.changed <- struct{}{}:
	default: // a look is due already
	}
}

// follow makes a pass due by wake when other pins hold for this zone, or more
// manifests were named than wait, until ctx ends.
func (p *pins) follow(ctx context.Context, wake func()) {
	var own []Pin
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.changed:
		}
		set, err := p.current()
		if err != nil {
			p.log.Warn("what is pinned is not known", "error", err)
			continue
		}
		was := own
		own = nil
		for _, one := range set.own {
			own = append(own, one.Pin)
		}
		if p.missed.Swap(false) || !slices.Equal(own, was) {
			wake()
		}
	}
}

// fetch has this node fetch what it is to keep of each manifest that was named,
// until ctx ends. What cannot be had now is left to a pass.
func (p *pins) fetch(ctx context.Context, blobs *mesh.Blobs) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-p.named:
			failed := error(nil)
			whole, err := p.catalog.Parts(m.repo, m.digest, func(ds []digest.Digest) error {
				failed = cmp.Or(blobs.Keep(ctx, ds), failed)
				return ctx.Err()
			})
			if err = cmp.Or(err, failed); (err != nil || !whole) && ctx.Err() == nil {
				p.log.Info("a pinned image is not all here yet", "repository", m.repo, "digest", m.digest, "error", err)
				blobs.Wake()
			}
		}
	}
}

// Pinned implements mesh.Pins.
func (p *pins) Pinned(ds []digest.Digest) ([]bool, error) {
	set, err := p.current()
	if err != nil || len(set.own) == 0 {
		return nil, err
	}
	pinned := make([]bool, len(ds))
	err = p.match(set.own, ds, 1, func(i, _ int) { pinned[i] = true })
	return pinned, err
}

// match calls found with the indexes of a digest and of a pin that is about it,
// for at most so many pins of each digest.
func (p *pins) match(pins []pin, ds []digest.Digest, most int, found func(i, j int)) error {
	repos := map[string][]int{} // repository -> the pins about it
	at, hits := -1, make([]bool, len(pins))
	n := 0
	return p.catalog.Homes(ds, func(i int, repo, tag string) metadata.Look {
		if i != at {
			at, n = i, 0
			clear(hits)
		}
		of, known := repos[repo]
		if !known {
			if len(repos) == maxRepos {
				clear(repos)
			}
			of = about(pins, repo)
			repos[repo] = of
		}
		next := metadata.Elsewhere
		for _, j := range of {
			switch {
			case hits[j]:
			case pins[j].takes(tag):
				hits[j] = true
				found(i, j)
				if n++; n == most {
					return metadata.Enough
				}
			default:
				next = metadata.Further // another tag may do
			}
		}
		return next
	})
}

// about returns the indexes of the pins that match a repository.
func about(pins []pin, repo string) (of []int) {
	name := oci.Components(repo)
	for j := range pins {
		if pins[j].repos.Match(name) {
			of = append(of, j)
		}
	}
	return of
}

// current returns the pins as this node knows them now.
func (p *pins) current() (*pinSet, error) {
	if s := p.last.Load(); s != nil && s.version == p.catalog.SettingsVersion() {
		return s, nil
	}
	p.loading.Lock()
	defer p.loading.Unlock()
	version := p.catalog.SettingsVersion() // first: what is read after it is as new at least
	if s := p.last.Load(); s != nil && s.version == version {
		return s, nil
	}
	all, err := p.catalog.Settings(pinPrefix)
	if err != nil {
		return nil, err
	}
	s := &pinSet{version: version}
	for _, one := range all {
		ready, err := readPin(one.Value)
		if err != nil {
			p.log.Error("a pin that this version cannot read; what it pins may go", "key", one.Key, "error", err)
			continue
		}
		s.all = append(s.all, ready)
	}
	slices.SortFunc(s.all, func(a, b pin) int {
		return cmp.Or(cmp.Compare(a.Zone, b.Zone), cmp.Compare(a.Repo, b.Repo), cmp.Compare(a.Tag, b.Tag))
	})
	for _, one := range s.all {
		if one.Zone == p.zone {
			s.own = append(s.own, one)
		}
	}
	p.last.Store(s)
	return s, nil
}

func readPin(value []byte) (ready pin, err error) {
	if err := json.Unmarshal(value, &ready.Pin); err != nil {
		return ready, err
	}
	if err := ready.Check(); err != nil {
		return ready, err
	}
	ready.repos, err = oci.ParsePattern(ready.Repo)
	return ready, err
}

// pinKey is where the setting of a pin is.
func pinKey(p Pin) string {
	sum := sha256.Sum256([]byte(p.Zone + "\x00" + p.Repo + "\x00" + p.Tag))
	return pinPrefix + hex.EncodeToString(sum[:16])
}

// Pins implements api.Pinner.
func (n *Node) Pins(ctx context.Context) ([]Pin, error) {
	if err := n.catalog.Sync(ctx); err != nil {
		return nil, err
	}
	set, err := n.pins.current()
	if err != nil {
		return nil, err
	}
	var all []Pin
	for _, one := range set.all {
		all = append(all, one.Pin)
	}
	return all, nil
}

// AddPin implements api.Pinner. A zone that no member is of may be pinned for:
// its first node may come later.
func (n *Node) AddPin(ctx context.Context, actor string, p Pin) (done PinChange, err error) {
	if !nameRule.MatchString(p.Zone) {
		return done, oci.ErrUnsupported.Because("%.80q is no zone: use letters, digits, dots, dashes and underscores, at most 63", p.Zone)
	}
	if err := p.Check(); err != nil {
		return done, err
	}
	all, err := n.Pins(ctx)
	if err != nil {
		return done, err
	}
	if !slices.ContainsFunc(n.catalog.Members(), func(m metadata.Member) bool { return m.Zone == p.Zone }) {
		done.Warnings = append(done.Warnings, fmt.Sprintf("no member is of zone %s: nobody keeps what it pins until one is", p.Zone))
	}
	if slices.Contains(all, p) {
		done.Everywhere = true
		return done, nil
	}
	if len(all) >= maxPins {
		return done, oci.ErrDenied.Because("there are %d pins already, which is the most", len(all))
	}
	value, err := json.Marshal(p)
	if err != nil {
		return done, fmt.Errorf("encode pin: %w", err)
	}
	done.Everywhere, err = n.catalog.Change(ctx, actor, metadata.Change{Key: pinKey(p), Value: value})
	return done, err
}

// RemovePin implements api.Pinner.
func (n *Node) RemovePin(ctx context.Context, actor string, p Pin) (done PinChange, err error) {
	all, err := n.Pins(ctx)
	if err != nil {
		return done, err
	}
	if !slices.Contains(all, p) {
		return done, oci.ErrNotFound.Because("there is no pin %.400s", p)
	}
	done.Everywhere, err = n.catalog.Change(ctx, actor, metadata.Change{Key: pinKey(p)})
	return done, err
}
