package metadata

import (
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Records are the values of the state: fields one after another, numbers as
// varints, strings with their length. Protobuf would do, but for the promise
// that every version of every node makes the same bytes of the same value. A
// field may be added at the end of a record that has no rest.

var errRecord = errors.New("the state holds a damaged record")

func appendString[T ~string | ~[]byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

// fields takes a record apart. After the last field, err says whether all of
// them were there.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) uint() uint64 {
	v, n := binary.Uvarint(f.b)
	if n <= 0 {
		f.bad, f.b = true, nil
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) int() int64 { return int64(f.uint()) }
func (f *fields) bool() bool { return f.uint() != 0 }

// bytes returns a part of the record itself.
func (f *fields) bytes() []byte {
	n := f.uint()
	if n > uint64(len(f.b)) {
		f.bad, f.b = true, nil
		return nil
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) string() string { return string(f.bytes()) }

// sums returns the digests that the rest of the record is made of.
func (f *fields) sums() (all []sum) {
	for len(f.b) > 0 {
		n := sumLen(f.b)
		if n == 0 {
			f.bad, f.b = true, nil
			return nil
		}
		all = append(all, sum(f.b[:n]))
		f.b = f.b[n:]
	}
	return all
}

func (f *fields) err() error {
	if f.bad {
		return errRecord
	}
	return nil
}

// progress says how far the state has come.
type progress struct {
	index, term uint64 // of the last command
	now         int64  // log time: the latest `now` of any command
}

func (p progress) encode() []byte {
	b := binary.AppendUvarint(nil, p.index)
	b = binary.AppendUvarint(b, p.term)
	return binary.AppendUvarint(b, uint64(p.now))
}

func decodeProgress(b []byte) (progress, error) {
	f := fields{b: b}
	p := progress{index: f.uint(), term: f.uint(), now: f.int()}
	return p, f.err()
}

func encodeCluster(c Cluster) []byte {
	b := appendString(nil, c.ID)
	b = binary.AppendUvarint(b, uint64(c.Epoch))
	b = binary.AppendUvarint(b, uint64(c.Replicas))
	b = appendBool(b, c.AllowSparse)
	if c.UntaggedAfter == 0 { // the bytes that level 1 makes
		return b
	}
	return binary.AppendUvarint(b, uint64(c.UntaggedAfter))
}

func decodeCluster(b []byte) (Cluster, error) {
	f := fields{b: b}
	c := Cluster{ID: f.string(), Epoch: Epoch(f.uint()), Replicas: int(f.uint()), AllowSparse: f.bool()}
	if len(f.b) > 0 {
		c.UntaggedAfter = time.Duration(f.int())
	}
	return c, f.err()
}

// memberRecord is a member under its id, or a grave: an id that was removed
// never returns.
type memberRecord struct {
	Member
	buried bool
}

func (m memberRecord) encode() []byte {
	b := appendBool(nil, m.buried)
	b = appendString(b, m.Name)
	b = appendString(b, m.Key)
	b = appendString(b, m.Zone)
	b = binary.AppendUvarint(b, uint64(m.Weight))
	b = binary.AppendUvarint(b, uint64(m.Level))
	b = appendString(b, m.Address)
	if !m.Out && !m.Draining { // the bytes that level 1 makes
		return b
	}
	return appendBool(appendBool(b, m.Out), m.Draining)
}

func decodeMember(id string, b []byte) (memberRecord, error) {
	f := fields{b: b}
	m := memberRecord{buried: f.bool(), Member: Member{ID: id, Name: f.string()}}
	m.Key = slices.Clone(f.bytes())
	m.Zone = f.string()
	m.Weight = uint32(f.uint())
	m.Level = uint32(f.uint())
	m.Address = f.string()
	if len(f.b) > 0 {
		m.Out, m.Draining = f.bool(), f.bool()
	}
	return m, f.err()
}

// link is a blob's place in a repository, or that of a manifest whose body is
// placed as a blob.
type link struct {
	size int64
	used int64 // log time of the latest push, mount, re-offer or drop of its last manifest
}

func (l link) encode() []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(l.size)), uint64(l.used))
}

func decodeLink(b []byte) (link, error) {
	f := fields{b: b}
	l := link{size: f.int(), used: f.int()}
	return l, f.err()
}

// manifestRecord is a manifest under its repository and digest.
type manifestRecord struct {
	size      int64
	mediaType string
	names     []byte // encoded naming; reads do without
	inline    bool   // body is here; else it is placed as a blob
	body      []byte // the rest of the record
}

func (m manifestRecord) encode() []byte {
	b := make([]byte, 0, 32+len(m.mediaType)+len(m.names)+len(m.body))
	b = binary.AppendUvarint(b, uint64(m.size))
	b = appendString(b, m.mediaType)
	b = appendString(b, m.names)
	b = appendBool(b, m.inline)
	return append(b, m.body...)
}

// decodeManifest takes a manifest apart; names and body are parts of b.
func decodeManifest(b []byte) (manifestRecord, error) {
	f := fields{b: b}
	m := manifestRecord{size: f.int()}
	m.mediaType = mediaType(f.bytes())
	m.names = f.bytes()
	m.inline = f.bool()
	m.body = f.b
	return m, f.err()
}

// mediaType is string(b) without an allocation for the usual ones.
func mediaType(b []byte) string {
	switch string(b) {
	case v1.MediaTypeImageManifest:
		return v1.MediaTypeImageManifest
	case v1.MediaTypeImageIndex:
		return v1.MediaTypeImageIndex
	}
	return string(b)
}

func encodeTime(at int64) []byte { return binary.AppendUvarint(nil, uint64(at)) }

func decodeTime(b []byte) (int64, error) {
	f := fields{b: b}
	at := f.int()
	return at, f.err()
}

// settingRecord is a setting under its key.
type settingRecord struct {
	revision uint64 // index of the entry that wrote it
	value    []byte
}

func (s settingRecord) encode() []byte {
	return appendString(binary.AppendUvarint(nil, s.revision), s.value)
}

// decodeSetting returns a setting whose value is a copy, and never nil.
func decodeSetting(b []byte) (settingRecord, error) {
	f := fields{b: b}
	s := settingRecord{revision: f.uint()}
	s.value = append([]byte{}, f.bytes()...)
	return s, f.err()
}

// naming is what a manifest names.
type naming struct {
	subject sum
	refs    []sum // blobs and children, sorted, each once
}

func (n naming) encode() []byte {
	b := appendString(nil, n.subject)
	for _, r := range n.refs {
		b = append(b, r...)
	}
	return b
}

func decodeNaming(b []byte) (naming, error) {
	f := fields{b: b}
	n := naming{subject: sum(f.bytes())}
	n.refs = f.sums()
	return n, f.err()
}

// referrer is the part of a descriptor that its manifest's key does not say.
type referrer struct {
	mediaType    string
	size         int64
	artifactType string
	annotations  map[string]string
}

func (r referrer) encode() []byte {
	b := appendString(nil, r.artifactType) // first: the filter reads no further
	b = appendString(b, r.mediaType)
	b = binary.AppendUvarint(b, uint64(r.size))
	for _, k := range slices.Sorted(maps.Keys(r.annotations)) {
		b = appendString(b, k)
		b = appendString(b, r.annotations[k])
	}
	return b
}

func decodeReferrer(b []byte) (referrer, error) {
	f := fields{b: b}
	r := referrer{artifactType: f.string(), mediaType: f.string(), size: f.int()}
	for len(f.b) > 0 && !f.bad {
		if r.annotations == nil {
			r.annotations = map[string]string{}
		}
		k := f.string()
		r.annotations[k] = f.string()
	}
	return r, f.err()
}
