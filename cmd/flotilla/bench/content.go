package bench

import (
	"bytes"
	crand "crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// blob is content and its name. The data is valid until the next call of
// content.fresh; digest and size stay.
type blob struct {
	digest digest.Digest
	size   int64
	data   []byte
}

// content makes random bytes in one memory area that is used again and again,
// so that the garbage collector has nothing to do while the clock runs.
type content struct {
	rnd  *rand.PCG
	area []byte
}

func newContent() *content {
	var seed [16]byte
	crand.Read(seed[:])
	return &content{rnd: rand.NewPCG(binary.LittleEndian.Uint64(seed[:8]), binary.LittleEndian.Uint64(seed[8:]))}
}

// fresh returns blobs of the given sizes with bytes that no other has.
func (c *content) fresh(sizes ...int64) []blob {
	var total int64
	for _, size := range sizes {
		total += size
	}
	if int64(len(c.area)) < total {
		c.area = make([]byte, total)
	}
	c.fill(c.area[:total])
	blobs := make([]blob, len(sizes))
	rest := c.area[:total]
	for i, size := range sizes {
		data := rest[:size:size]
		rest = rest[size:]
		blobs[i] = blob{digest: digest.FromBytes(data), size: size, data: data}
	}
	return blobs
}

// fill writes eight bytes a step: as incompressible as those of a cipher, and
// several times faster.
func (c *content) fill(p []byte) {
	for len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, c.rnd.Uint64())
		p = p[8:]
	}
	var last [8]byte
	binary.LittleEndian.PutUint64(last[:], c.rnd.Uint64())
	copy(p, last[:])
}

func repeat(size Size, n int) []int64 { return slices.Repeat([]int64{int64(size)}, n) }

func totalSize(blobs []blob) (n int64) {
	for _, b := range blobs {
		n += b.size
	}
	return n
}

// manifestTemplate makes manifests that differ in one number of fixed width, so
// that a new one costs a copy of half a KiB.
type manifestTemplate struct {
	body   []byte
	number int // where the digits begin
}

const (
	numberDigits = 16
	numberKey    = "org.flotilla.bench.number"
)

// newTemplate describes an image: the first blob is its config, the others are layers.
func newTemplate(blobs []blob) (manifestTemplate, error) {
	descriptor := func(mediaType string, b blob) v1.Descriptor {
		return v1.Descriptor{MediaType: mediaType, Digest: b.digest, Size: b.size}
	}
	digits := bytes.Repeat([]byte{'0'}, numberDigits)
	m := v1.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   v1.MediaTypeImageManifest,
		Config:      descriptor(v1.MediaTypeImageConfig, blobs[0]),
		Annotations: map[string]string{numberKey: string(digits)},
	}
	for _, b := range blobs[1:] {
		m.Layers = append(m.Layers, descriptor(v1.MediaTypeImageLayer, b))
	}
	body, err := json.Marshal(m)
	if err != nil {
		return manifestTemplate{}, fmt.Errorf("encode manifest: %w", err)
	}
	return manifestTemplate{body, bytes.LastIndex(body, digits)}, nil
}

// numbered is the manifest with number n.
func (t manifestTemplate) numbered(n uint64) []byte {
	body := slices.Clone(t.body)
	const digits = "0123456789abcdef"
	for i := numberDigits - 1; i >= 0; i-- {
		body[t.number+i] = digits[n&15]
		n >>= 4
	}
	return body
}
