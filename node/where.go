package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/metadata"
)

// Bounds on what one question of where an image is may cost. Every level of
// nested indexes is a manifest more, so these bound their depth too.
const (
	maxImageParts     = 10_000
	maxImageManifests = 256
	maxImageBodies    = 64 << 20 // bytes of manifests that are parsed
	imagesAtOnce      = 4        // questions; others wait
	locateTime        = time.Minute
)

// Whereabouts is what GET /flotilla/v1/where answers, and `flotilla where`
// prints: who holds what an image is made of.
type Whereabouts struct {
	Repository string        `json:"repository"`
	Reference  string        `json:"reference"` // the tag or digest asked for
	Digest     digest.Digest `json:"digest"`    // of the manifest that it names
	// Degraded says that the tag is as this node last knew it, which is at
	// most Age ago, in nanoseconds; 0 where that is not known.
	Degraded bool          `json:"degraded,omitempty"`
	Age      time.Duration `json:"age,omitempty"`
	// Parts come as the manifests name them, each behind the first that does,
	// and each once. Layers that are not distributable are not among them.
	Parts  []ImagePart `json:"parts"`
	More   bool        `json:"more,omitempty"` // Parts is not all: it would be too much, or a manifest's bytes cannot be had
	Zones  []ZoneParts `json:"zones"`          // every zone of the mesh, by name
	Silent []NodeName  `json:"silent,omitempty"`
}

// ImagePart is one manifest or blob of an image.
type ImagePart struct {
	Kind     string        `json:"kind"` // index, manifest, config, layer
	Digest   digest.Digest `json:"digest"`
	Size     int64         `json:"size"`
	Platform string        `json:"platform,omitempty"` // of a manifest, as its index has it: os/architecture/variant
	// State is one of the constants below.
	State string `json:"state"`
	// Holders are the names of the nodes that hold a placed part, by zone.
	Holders map[string][]string `json:"holders,omitempty"`
	// Lacking are the names of those that own it and said that they lack it.
	Lacking []string `json:"lacking,omitempty"`
}

// The states of an ImagePart.
const (
	PartPlaced  = "placed"  // Holders says where it is
	PartInLog   = "inlog"   // a small manifest, which every node has with the names
	PartAbsent  = "absent"  // the repository lacks it, or no node has it any more
	PartUnknown = "unknown" // this node does not know it, and cannot prove now that it is absent
)

// ZoneParts is how much of an image the nodes of a zone hold together, of its
// placed parts.
type ZoneParts struct {
	Zone    string `json:"zone"`
	Blobs   int    `json:"blobs"`   // that some node of the zone holds
	Of      int    `json:"of"`      // how many there are
	Missing int64  `json:"missing"` // bytes of the others
	// Unsure says that members of the zone gave no answer: it may hold more.
	Unsure bool `json:"unsure,omitempty"`
}

// NodeName is a node as people know it.
type NodeName struct {
	Name string `json:"name"`
	Zone string `json:"zone"`
}

// Where tells who holds what ref names in repo. It errs as a pull of the
// manifest would.
func (n *Node) Where(ctx context.Context, repo string, ref oci.Reference) (any, error) {
	select {
	case n.locating <- struct{}{}:
		defer func() { <-n.locating }()
	case <-ctx.Done():
		return nil, oci.ErrUnavailable.Wrap(context.Cause(ctx))
	}
	ctx, cancel := context.WithTimeout(ctx, locateTime)
	defer cancel()
	top, err := n.catalog.Manifest(ctx, repo, ref)
	if err != nil {
		return nil, err
	}
	w := &imageWalk{n: n, repo: repo, seen: map[digest.Digest]bool{}}
	w.proven = w.prove(ctx)
	if err := w.manifest(ctx, top, ""); err != nil {
		return nil, err
	}
	var placed []digest.Digest
	for _, p := range w.parts {
		if p.State == PartPlaced {
			placed = append(placed, p.Digest)
		}
	}
	held, err := n.blobs.Where(ctx, placed)
	if err != nil {
		return nil, err
	}
	out := Whereabouts{
		Repository: repo, Reference: ref.String(), Digest: top.Digest, Degraded: top.Degraded, Age: top.Age,
		Parts: w.parts, More: w.more,
	}
	n.locate(&out, held)
	return out, nil
}

// imageWalk lists the parts of one image.
type imageWalk struct {
	n         *Node
	repo      string
	proven    bool // what this replica lacks is absent
	seen      map[digest.Digest]bool
	parts     []ImagePart
	manifests int
	bodies    int64
	more      bool
}

// proofTime is how long a walk waits for the proof that this replica is
// current. What it has, it lists without that too.
const proofTime = 2 * time.Second

func (w *imageWalk) prove(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, proofTime)
	defer cancel()
	return w.n.catalog.Sync(ctx) == nil
}

// lacking is the state of what this replica did not give.
func (w *imageWalk) lacking(err error) string {
	missed := errors.Is(err, oci.ErrBlobUnknown) || errors.Is(err, oci.ErrManifestUnknown) || errors.Is(err, oci.ErrNameUnknown)
	if w.proven && missed {
		return PartAbsent
	}
	return PartUnknown
}

// add lists p, unless it is listed already or there are too many.
func (w *imageWalk) add(p ImagePart) bool {
	switch {
	case w.seen[p.Digest]:
		return false
	case len(w.parts) == maxImageParts:
		w.more = true
		return false
	}
	w.seen[p.Digest] = true
	w.parts = append(w.parts, p)
	return true
}

// manifest lists m and, behind it, all that it names. It fails only where the
// bytes of the first cannot be had.
func (w *imageWalk) manifest(ctx context.Context, m metadata.Manifest, platform string) error {
	part := ImagePart{Kind: kindOf(m.MediaType), Digest: m.Digest, Size: m.Size, Platform: platform, State: PartInLog}
	if m.Body == nil {
		part.State = PartPlaced
	}
	first := len(w.parts) == 0
	if !w.add(part) {
		return nil
	}
	w.manifests++
	w.bodies += m.Size
	if w.manifests > maxImageManifests || w.bodies > maxImageBodies {
		w.more = true
		return nil
	}
	body, err := w.body(ctx, m)
	var parsed oci.Manifest
	if err == nil {
		parsed, err = oci.ParseManifest(m.MediaType, m.Digest, body)
	}
	if err != nil {
		w.more = true
		if first {
			return err
		}
		w.n.log.Debug("a manifest of an image cannot be read", "digest", m.Digest, "error", err, "request", oci.RequestID(ctx))
		return nil
	}
	w.blobs(parsed.Blobs)
	platforms := platformsOf(body, parsed)
	for _, c := range parsed.Children {
		if err := ctx.Err(); err != nil {
			return oci.ErrUnavailable.Wrap(context.Cause(ctx))
		}
		child, err := w.n.catalog.ManifestHere(w.repo, c.Digest)
		if err != nil {
			w.add(ImagePart{Kind: kindOf(c.MediaType), Digest: c.Digest, Size: c.Size, Platform: platforms[c.Digest], State: w.lacking(err)})
			continue
		}
		if err := w.manifest(ctx, child, platforms[c.Digest]); err != nil {
			return err
		}
	}
	return nil
}

// blobs lists what an image names: its config, and then its layers. Of what the
// repository does not link nothing is told.
func (w *imageWalk) blobs(ds []oci.Descriptor) {
	for i, d := range ds {
		part := ImagePart{Kind: "layer", Digest: d.Digest, Size: d.Size, State: PartPlaced}
		if i == 0 {
			part.Kind = "config"
		}
		if link, err := w.n.catalog.BlobHere(w.repo, d.Digest); err == nil {
			part.Size = link.Size
		} else {
			part.State = w.lacking(err)
		}
		w.add(part)
	}
}

// body returns the bytes of m: a large one may come from another node.
func (w *imageWalk) body(ctx context.Context, m metadata.Manifest) ([]byte, error) {
	if m.Body != nil {
		return m.Body, nil
	}
	f, size, err := w.n.blobs.Open(ctx, m.Digest)
	if err != nil {
		return nil, err
	}
	free := context.AfterFunc(ctx, func() { _ = f.Close() }) // frees a Read that waits
	defer func() {
		if free() {
			_ = f.Close()
		}
	}()
	return io.ReadAll(io.LimitReader(f, min(size, oci.MaxManifest)))
}

// kindOf returns what people call a manifest of this type.
func kindOf(mediaType string) string {
	if mediaType == oci.TypeIndex || mediaType == oci.TypeDockerList {
		return "index"
	}
	return "manifest"
}

// platformWord is what a part of a platform is made of. What is not may be an
// attempt on somebody's terminal.
var platformWord = regexp.MustCompile(`^[A-Za-z0-9._-]{1,32}$`)

// platformsOf returns what an index says its manifests are for; image-spec,
// "Image Index", platform.
func platformsOf(body []byte, m oci.Manifest) map[digest.Digest]string {
	if len(m.Children) == 0 {
		return nil
	}
	var index struct {
		Manifests []struct {
			Digest   digest.Digest `json:"digest"`
			Platform struct {
				OS           string `json:"os"`
				Architecture string `json:"architecture"`
				Variant      string `json:"variant"`
			} `json:"platform"`
		} `json:"manifests"`
	}
	if json.Unmarshal(body, &index) != nil { // a platform of another shape: the list is good all the same
		return nil
	}
	platforms := make(map[digest.Digest]string, len(m.Children))
	for _, c := range index.Manifests {
		p := c.Platform
		if !platformWord.MatchString(p.OS) || !platformWord.MatchString(p.Architecture) {
			continue
		}
		platforms[c.Digest] = p.OS + "/" + p.Architecture
		if platformWord.MatchString(p.Variant) {
			platforms[c.Digest] += "/" + p.Variant
		}
	}
	return platforms
}

// locate fills in who holds the parts, by the names of the members as they are
// now, and sums up.
func (n *Node) locate(out *Whereabouts, held mesh.Whereabouts) {
	names, zones := n.nodeNames(), map[string]*ZoneParts{}
	for _, name := range names {
		zones[name.Zone] = &ZoneParts{Zone: name.Zone}
	}
	for _, id := range held.Silent {
		if name, known := names[id]; known {
			out.Silent = append(out.Silent, name)
			zones[name.Zone].Unsure = true
		}
	}
	r := n.members.Ring()
	for i := range out.Parts {
		p := &out.Parts[i]
		if p.State != PartPlaced {
			continue
		}
		holders := held.Holders[p.Digest]
		p.Holders = map[string][]string{}
		for _, id := range holders {
			if name, known := names[id]; known {
				p.Holders[name.Zone] = append(p.Holders[name.Zone], name.Name)
			}
		}
		for _, o := range r.Owners(p.Digest) {
			if name, known := names[o.ID]; known && !slices.Contains(holders, o.ID) && !slices.Contains(held.Silent, o.ID) {
				p.Lacking = append(p.Lacking, name.Name)
			}
		}
		slices.Sort(p.Lacking)
		for zone, z := range zones {
			z.Of++
			if slices.Sort(p.Holders[zone]); len(p.Holders[zone]) > 0 {
				z.Blobs++
			} else {
				z.Missing += p.Size
			}
		}
	}
	out.Zones = []ZoneParts{}
	for _, z := range zones {
		out.Zones = append(out.Zones, *z)
	}
	slices.SortFunc(out.Zones, func(a, b ZoneParts) int { return cmp.Compare(a.Zone, b.Zone) })
	slices.SortFunc(out.Silent, func(a, b NodeName) int { return cmp.Compare(a.Name, b.Name) })
}
