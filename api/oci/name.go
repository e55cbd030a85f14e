package oci

import (
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

// maxName bounds a repository name. The specification leaves it open; most
// clients allow 255 characters for host and name together.
const maxName = 255

// The grammars of distribution-spec, "Pulling manifests", anchored.
var (
	nameGrammar = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// CheckName returns ErrNameInvalid unless name can name a repository.
func CheckName(name string) error {
	if len(name) > maxName {
		return ErrNameInvalid.Because("longer than %d characters", maxName)
	}
	if !nameGrammar.MatchString(name) {
		return ErrNameInvalid.Because("%q is not lower-case letters and digits with . _ __ - or / between them", name)
	}
	return nil
}

// CheckTag returns ErrTagInvalid unless tag can be a tag.
func CheckTag(tag string) error {
	if !tagGrammar.MatchString(tag) {
		return ErrTagInvalid.Because("%.128q is not up to 128 letters, digits, _ . and -, the first no . or -", tag)
	}
	return nil
}

// Reference is what follows /manifests/ in a request: a tag or a digest.
// Exactly one field is set.
type Reference struct {
	Tag    string
	Digest digest.Digest
}

// ParseReference reads a tag or a digest; a colon makes it a digest.
func ParseReference(s string) (Reference, error) {
	if strings.Contains(s, ":") {
		d, err := ParseDigest(s)
		return Reference{Digest: d}, err
	}
	if err := CheckTag(s); err != nil {
		return Reference{}, err
	}
	return Reference{Tag: s}, nil
}

// String returns the tag or the digest.
func (r Reference) String() string {
	if r.Digest != "" {
		return r.Digest.String()
	}
	return r.Tag
}
