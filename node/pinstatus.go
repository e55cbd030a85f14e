package node

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
)

// PinsStatus is what GET /flotilla/v1/pins/status answers, and `flotilla pin
// status` prints.
type PinsStatus struct {
	At     time.Time   `json:"at"` // when the look began
	Pins   []PinStatus `json:"pins"`
	Silent []string    `json:"silent,omitempty"` // names of members that did not say what they hold
	// Degraded says that pins and images are as this node last knew them, since
	// the mesh could not be asked.
	Degraded bool `json:"degraded,omitempty"`
}

// PinStatus is how far a zone holds what it pins.
type PinStatus struct {
	Pin
	Holds bool   `json:"holds"`         // some node of the zone that stays holds each of the blobs
	Why   string `json:"why,omitempty"` // why it does not, or why that is not known

	Images int64 `json:"images"` // manifests that the pin names; those that come with them are not counted
	Blobs  int64 `json:"blobs"`
	Bytes  int64 `json:"bytes"`

	MissingBlobs int64 `json:"missingBlobs"`
	MissingBytes int64 `json:"missingBytes"`
	// TimeToGo is how long it takes in nanoseconds until these are there, at the
	// pace at which the nodes that lack them make copies and the rate at which the
	// zone takes them in; 0 where that is not known.
	TimeToGo time.Duration `json:"timeToGo"`
}

// pinsLook is the last look at the pins.
type pinsLook struct {
	looking chan struct{} // holds a token while somebody looks
	until   time.Time     // how long the last look serves all who ask,
	pins    *pinSet       // while these are the pins
	last    PinsStatus
}

func newPinsLook() pinsLook { return pinsLook{looking: make(chan struct{}, 1)} }

// pinPage is how many blobs are looked at together.
const pinPage = 1000

// PinStatus implements api.Pinner. Where the mesh cannot be asked, it tells what
// this node knows: a site that is cut off wants to know what it has. It looks at
// every blob of the mesh and asks every member about those that are pinned, so
// one look serves whoever asks meanwhile, and for as long again as it took.
func (n *Node) PinStatus(ctx context.Context) (any, error) {
	l := &n.pinned
	select {
	case l.looking <- struct{}{}:
		defer func() { <-l.looking }()
	case <-ctx.Done():
		return nil, oci.ErrUnavailable.Wrap(context.Cause(ctx))
	}
	behind := n.catalog.Sync(ctx) != nil
	if ctx.Err() != nil {
		return nil, oci.ErrUnavailable.Wrap(context.Cause(ctx))
	}
	pins, err := n.pins.current()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if pins == l.pins && began.Before(l.until) {
		return l.last, nil
	}
	s, err := n.lookAtPins(ctx, pins)
	if ctx.Err() != nil {
		return nil, oci.ErrUnavailable.Wrap(context.Cause(ctx))
	}
	if err != nil {
		return nil, err
	}
	s.At, s.Degraded = began, behind
	l.last, l.pins, l.until = s, pins, time.Now().Add(max(time.Since(began), lookEvery))
	return s, nil
}

// survey is one look at all pins.
type survey struct {
	n      *Node
	pins   []pin
	status []PinStatus
	zones  map[string]string        // zone of each member that stays
	silent map[string]bool          // members that did not answer
	to     map[string]map[int]int64 // missing bytes, by the node that is to fetch them and by pin
}

// lookAtPins finds out how far all pins hold.
func (n *Node) lookAtPins(ctx context.Context, pins *pinSet) (PinsStatus, error) {
	s := &survey{n: n, pins: pins.all, zones: map[string]string{}, silent: map[string]bool{}, to: map[string]map[int]int64{}}
	for _, one := range s.pins {
		s.status = append(s.status, PinStatus{Pin: one.Pin})
	}
	for _, node := range n.members.Ring().Nodes() {
		if !node.Leaves {
			s.zones[node.ID] = node.Zone
		}
	}
	for _, step := range []func(context.Context) error{s.countImages, s.countBlobs, s.estimate} {
		if err := step(ctx); err != nil {
			return PinsStatus{}, err
		}
	}
	return s.result(), nil
}

// countImages counts the manifests that each pin names.
func (s *survey) countImages(ctx context.Context) error {
	if len(s.pins) == 0 {
		return nil
	}
	last, of := "", []int(nil)
	err := s.n.catalog.Images(func(repo string) bool {
		return len(about(s.pins, repo)) > 0
	}, func(repo string, _ digest.Digest, tags []string) bool {
		if repo != last {
			last, of = repo, about(s.pins, repo)
		}
		for _, j := range of {
			if s.pins[j].Tag == "" || slices.ContainsFunc(tags, s.pins[j].takes) {
				s.status[j].Images++
			}
		}
		return ctx.Err() == nil
	})
	return cmp.Or(err, ctx.Err())
}

// countBlobs goes over all blobs and finds out who holds those that are pinned.
func (s *survey) countBlobs(ctx context.Context) error {
	for after := digest.Digest(""); len(s.pins) > 0; {
		page, err := s.n.catalog.Wanted(after, pinPage)
		if err = cmp.Or(err, ctx.Err()); err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		after = page[len(page)-1].Digest
		if err := s.countPage(ctx, page); err != nil {
			return err
		}
	}
	return nil
}

func (s *survey) countPage(ctx context.Context, page []metadata.Want) error {
	ds := make([]digest.Digest, len(page))
	for i, w := range page {
		ds[i] = w.Digest
	}
	by := make([][]int, len(page)) // the pins that are about each blob
	var pinned []digest.Digest
	err := s.n.pins.match(s.pins, ds, len(s.pins), func(i, j int) {
		if by[i] = append(by[i], j); len(by[i]) == 1 {
			pinned = append(pinned, ds[i])
		}
	})
	if err != nil || len(pinned) == 0 {
		return err
	}
	where, err := s.n.blobs.Where(ctx, pinned)
	if err != nil {
		return err
	}
	for _, id := range where.Silent {
		s.silent[id] = true
	}
	for i, w := range page {
		for _, j := range by[i] {
			s.count(w, j, where.Holders[w.Digest])
		}
	}
	return nil
}

// count counts a blob for a pin.
func (s *survey) count(w metadata.Want, j int, holders []string) {
	p, size := &s.status[j], max(w.Size, 0)
	p.Blobs++
	p.Bytes += size
	if slices.ContainsFunc(holders, func(id string) bool { return s.zones[id] == p.Zone }) {
		return
	}
	p.MissingBlobs++
	p.MissingBytes += size
	if k, ok := s.n.members.Ring().Keeper(w.Digest, p.Zone); ok {
		if s.to[k.ID] == nil {
			s.to[k.ID] = map[int]int64{}
		}
		s.to[k.ID][j] += size
	}
}

// estimate finds out how long each pin takes: its slowest node decides, or the
// rate of the zone, for all that it lacks is elsewhere.
func (s *survey) estimate(ctx context.Context) error {
	for id, missing := range s.to {
		h, err := s.n.blobs.HealthOf(ctx, id)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil || h.Pace <= 0 {
			continue // it does not say, or never looked yet
		}
		for j, size := range missing {
			p := &s.status[j]
			p.TimeToGo = max(p.TimeToGo, timeFor(size, h.Pace))
			if h.ZoneRate > 0 {
				p.TimeToGo = max(p.TimeToGo, timeFor(p.MissingBytes, h.ZoneRate))
			}
		}
	}
	return nil
}

// timeFor returns how long bytes take at a rate above 0.
func timeFor(bytes, perSecond int64) time.Duration {
	return time.Duration(float64(bytes) / float64(perSecond) * float64(time.Second))
}

// result says of each pin whether it holds, and why not.
func (s *survey) result() PinsStatus {
	out := PinsStatus{Pins: []PinStatus{}}
	for _, p := range s.status {
		p.Holds, p.Why = s.judge(p)
		out.Pins = append(out.Pins, p)
	}
	for _, m := range s.n.catalog.Members() {
		if s.silent[m.ID] {
			out.Silent = append(out.Silent, m.Name)
		}
	}
	return out
}

// judge says whether a pin holds. A zone that nobody is of holds nothing, be
// there nothing to hold.
func (s *survey) judge(p PinStatus) (holds bool, why string) {
	nodes, live, silent := 0, 0, 0
	for id, zone := range s.zones {
		if zone != p.Zone {
			continue
		}
		nodes++
		if !s.n.members.Down(id) {
			live++
		}
		if s.silent[id] {
			silent++
		}
	}
	switch {
	case nodes == 0:
		return false, fmt.Sprintf("no member is of zone %s, or all of them leave", p.Zone)
	case live == 0:
		return false, "no member of the zone is up"
	case p.MissingBlobs > 0 && silent > 0:
		return false, fmt.Sprintf("%d of %d members of the zone do not say what they hold", silent, nodes)
	case p.MissingBlobs > 0:
		return false, "blobs are missing"
	}
	return true, ""
}
