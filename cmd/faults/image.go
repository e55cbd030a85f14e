package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// part is a blob or a manifest of which the bytes can be made again.
type part struct {
	digest digest.Digest
	size   int64
	seed   [2]uint64
}

// bytes are the part's content: random, by its seed.
func (p part) bytes() []byte {
	r := rand.New(rand.NewPCG(p.seed[0], p.seed[1]))
	b := make([]byte, (p.size+7)/8*8)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b[:p.size]
}

func newPart(size int64, r *rand.Rand) part {
	p := part{size: size, seed: [2]uint64{r.Uint64(), r.Uint64()}}
	p.digest = digest.FromBytes(p.bytes())
	return p
}

// image is one image in one repository: a config, layers, and a manifest.
type image struct {
	repo     string
	parts    []part // the config first
	manifest []byte
	digest   digest.Digest

	pinned, taken bool // never to be deleted; about to be; guarded by the ledger
}

func newImage(repo string, parts []part) *image {
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for i, p := range parts {
		d := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: p.digest, Size: p.size}
		if i == 0 {
			d.MediaType = v1.MediaTypeImageConfig
			m.Config = d
			continue
		}
		m.Layers = append(m.Layers, d)
	}
	body, err := json.Marshal(m)
	if err != nil { // only strings and numbers are in it
		panic(fmt.Sprint("encode manifest: ", err))
	}
	return &image{repo: repo, parts: parts, manifest: body, digest: digest.FromBytes(body)}
}

// ledger is every image whose push was acknowledged, and what became of it.
type ledger struct {
	mu      sync.Mutex
	pushed  int
	kept    []*image // acknowledged, and never asked to be deleted
	deleted []*image // acknowledged to be deleted
}

// add notes an acknowledged push.
func (l *ledger) add(i *image) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pushed++
	l.kept = append(l.kept, i)
}

// pick returns some image that must be there, or nil; it will never be deleted
// if it is pinned.
func (l *ledger) pick(draw uint64, pin bool) *image {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.kept) == 0 {
		return nil
	}
	i := l.kept[draw%uint64(len(l.kept))]
	i.pinned = i.pinned || pin
	return i
}

// take removes some image from those that must be there, since it is about to
// be deleted.
func (l *ledger) take(draw uint64) *image {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.kept) == 0 {
		return nil
	}
	n := int(draw % uint64(len(l.kept)))
	i := l.kept[n]
	if i.pinned {
		return nil
	}
	i.taken = true
	l.kept = slices.Delete(l.kept, n, n+1)
	return i
}

// stays reports whether the image must still be there.
func (l *ledger) stays(i *image) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !i.taken
}

// giveBack notes that the image taken was not deleted after all.
func (l *ledger) giveBack(i *image) {
	l.mu.Lock()
	defer l.mu.Unlock()
	i.taken = false
	l.kept = append(l.kept, i)
}

// remove notes that the image taken was deleted for certain.
func (l *ledger) remove(i *image) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deleted = append(l.deleted, i)
}

// all returns what must be there and what must not.
func (l *ledger) all() (kept, deleted []*image) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.kept), slices.Clone(l.deleted)
}

func (l *ledger) acknowledged() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pushed
}
