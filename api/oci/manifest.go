package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxManifest is the largest manifest taken: what the specification asks
// registries to support at least, and go-containerregistry's and containerd's
// own ceiling.
const MaxManifest = 4 << 20

// The media types of the manifests that are taken.
const (
	TypeImage       = v1.MediaTypeImageManifest
	TypeIndex       = v1.MediaTypeImageIndex
	TypeDockerImage = "application/vnd.docker.distribution.manifest.v2+json"
	TypeDockerList  = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Layers that a registry must not ask for: image-spec 1.0, "Non-Distributable
// Layers", and their Docker forerunner.
const (
	nonDistributable = "application/vnd.oci.image.layer.nondistributable."
	dockerForeign    = "application/vnd.docker.image.rootfs.foreign."
)

// Descriptor is the image specification's.
type Descriptor = v1.Descriptor

// Manifest is what a registry needs to know about a manifest: which bytes it
// names, and how the referrers API shows it. Its descriptors hold media type,
// digest and size only.
type Manifest struct {
	MediaType string
	Digest    digest.Digest
	Size      int64

	Blobs    []Descriptor // config and layers that must be in the repository: non-distributable layers are left out
	Children []Descriptor // manifests of an index; they may be absent
	Subject  *Descriptor  // what this manifest refers to; it may be absent

	// As the referrers API must show them: an image without an artifact type
	// takes its config's media type, an index has none.
	ArtifactType string
	Annotations  map[string]string
}

// document is the union of what the four kinds of manifest may hold, and of
// what gives away a fifth.
type document struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *Descriptor       `json:"config"`
	Layers        descriptors       `json:"layers"`
	Manifests     descriptors       `json:"manifests"`
	Subject       *Descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
	FSLayers      json.RawMessage   `json:"fsLayers"` // schema 1
}

// descriptors is a list that is read one by one and given up at the first that
// is none: a body of a few MiB must not become a list of a million nothings.
// It is nil where the field is absent or null.
type descriptors []Descriptor

// UnmarshalJSON implements json.Unmarshaler.
func (ds *descriptors) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if open, err := dec.Token(); err != nil || open != json.Delim('[') {
		return errors.New("not a list of descriptors")
	}
	*ds = descriptors{}
	for dec.More() {
		// What a registry looks at; Descriptor itself is many times as large.
		var d struct {
			MediaType string        `json:"mediaType"`
			Digest    digest.Digest `json:"digest"`
			Size      int64         `json:"size"`
		}
		if err := dec.Decode(&d); err != nil {
			return err
		}
		if d.Digest == "" {
			return errors.New("a descriptor without a digest")
		}
		*ds = append(*ds, Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
	}
	return nil
}

// ParseManifest reads the manifest body, whose digest the caller has computed
// to be d, as mediaType says: the value of a Content-Type header, or "" to
// believe the body. Everything it cannot vouch for is ErrManifestInvalid.
//
// One body must not mean two things to two readers (CVE-2021-41190), so the
// media types of header and body must agree, an image must not list manifests
// nor an index layers, and no key may occur twice.
func ParseManifest(mediaType string, d digest.Digest, body []byte) (Manifest, error) {
	if !utf8.Valid(body) { // encoding/json mends it, other readers do otherwise
		return Manifest{}, ErrManifestInvalid.Because("not UTF-8")
	}
	var doc document
	if err := json.Unmarshal(body, &doc); err != nil {
		return Manifest{}, ErrManifestInvalid.Because("%v", err)
	}
	if err := checkKeys(body); err != nil {
		return Manifest{}, err
	}
	mediaType, err := agree(mediaType, &doc)
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{
		MediaType:    mediaType,
		Digest:       d,
		Size:         int64(len(body)),
		ArtifactType: doc.ArtifactType,
		Annotations:  doc.Annotations,
	}
	switch mediaType {
	case TypeImage, TypeDockerImage:
		err = m.image(&doc)
	default:
		err = m.index(&doc)
	}
	if err == nil && doc.Subject != nil {
		var s Descriptor
		s, err = checkDescriptor("subject", *doc.Subject)
		m.Subject = &s
	}
	if err != nil {
		return Manifest{}, err
	}
	return m, nil
}

// agree returns the media type that header and body agree on, where it is one
// of the four. A body may leave its field out, and a request its header.
func agree(header string, doc *document) (string, error) {
	header, _, _ = strings.Cut(header, ";")
	header = strings.ToLower(strings.TrimSpace(header))
	mediaType := header
	switch {
	case header == "" && doc.MediaType != "":
		mediaType = doc.MediaType
	case header == "" && doc.Manifests != nil:
		mediaType = TypeIndex
	case header == "":
		mediaType = TypeImage
	case doc.MediaType != "" && doc.MediaType != header:
		return "", ErrManifestInvalid.Because("Content-Type %.100q, but the manifest says mediaType %.100q", header, doc.MediaType)
	}
	if doc.SchemaVersion == 1 || doc.FSLayers != nil || strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1+") {
		return "", ErrManifestInvalid.Because("Docker schema 1 is not supported; push the image with a client newer than 2017")
	}
	switch mediaType {
	case TypeImage, TypeIndex, TypeDockerImage, TypeDockerList:
	default:
		return "", ErrManifestInvalid.Because("media type %.100q is not supported, only %s, %s, %s and %s",
			mediaType, TypeImage, TypeIndex, TypeDockerImage, TypeDockerList)
	}
	if doc.SchemaVersion != 2 {
		return "", ErrManifestInvalid.Because("schemaVersion must be 2")
	}
	return mediaType, nil
}

func (m *Manifest) image(doc *document) error {
	if doc.Manifests != nil {
		return ErrManifestInvalid.Because("an image must not list manifests")
	}
	if doc.Config == nil {
		return ErrManifestInvalid.Because("an image must have a config")
	}
	if m.ArtifactType == "" {
		m.ArtifactType = doc.Config.MediaType
	}
	seen := make(map[digest.Digest]bool, len(doc.Layers)+1)
	add := func(field string, d Descriptor) error {
		d, err := checkDescriptor(field, d)
		if err == nil && !seen[d.Digest] {
			seen[d.Digest] = true
			m.Blobs = append(m.Blobs, d)
		}
		return err
	}
	if err := add("config", *doc.Config); err != nil {
		return err
	}
	for _, l := range doc.Layers {
		if strings.HasPrefix(l.MediaType, nonDistributable) || strings.HasPrefix(l.MediaType, dockerForeign) {
			if _, err := checkDescriptor("layer", l); err != nil {
				return err
			}
			continue
		}
		if err := add("layer", l); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manifest) index(doc *document) error {
	if doc.Config != nil || doc.Layers != nil {
		return ErrManifestInvalid.Because("an index must not have a config or layers")
	}
	seen := make(map[digest.Digest]bool, len(doc.Manifests))
	for _, c := range doc.Manifests {
		c, err := checkDescriptor("manifest", c)
		if err != nil {
			return err
		}
		if !seen[c.Digest] {
			seen[c.Digest] = true
			m.Children = append(m.Children, c)
		}
	}
	return nil
}

// checkDescriptor returns d without what a registry does not look at.
func checkDescriptor(field string, d Descriptor) (Descriptor, error) {
	if _, err := ParseDigest(d.Digest.String()); err != nil {
		return Descriptor{}, ErrManifestInvalid.Because("%s: %v", field, err)
	}
	if d.Size < 0 {
		return Descriptor{}, ErrManifestInvalid.Because("%s %s: negative size", field, d.Digest)
	}
	return Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}, nil
}

// checkKeys refuses an object that holds a key twice, which some parsers read
// as the first value and some as the last. At the top, keys that differ by case
// alone are the same too: Go's parser, hence most clients, take them so. It
// expects valid JSON, whose depth encoding/json has bounded.
func checkKeys(body []byte) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	if err := checkValue(dec, foldCase); err != nil {
		return ErrManifestInvalid.Because("%v", err)
	}
	return nil
}

func checkValue(dec *json.Decoder, fold func(string) string) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	open, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	var seen map[string]bool
	for dec.More() {
		if open == '{' {
			if seen == nil {
				seen = map[string]bool{}
			}
			token, err := dec.Token()
			if err != nil {
				return err
			}
			key := fold(token.(string)) // where a key stands there are strings only
			if seen[key] {
				return fmt.Errorf("key %.100q occurs twice", key)
			}
			seen[key] = true
		}
		if err := checkValue(dec, strings.Clone); err != nil {
			return err
		}
	}
	_, err = dec.Token() // the closing bracket
	return err
}

// foldCase maps strings that encoding/json takes for the same field to one.
func foldCase(s string) string {
	return strings.Map(func(r rune) rune {
		for {
			next := unicode.SimpleFold(r)
			if next <= r {
				return next // the orbit is done: its smallest rune
			}
			r = next
		}
	}, s)
}
