package auth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// policy is a Document made ready to be asked. The zero value allows nobody
// anything, but administrators all.
type policy struct {
	rules     []rule
	anonymous []oci.Pattern
	immutable []immutable
	broken    bool // the document is not understood
}

type rule struct {
	everyone     bool // every account
	who          map[string]bool
	repositories []oci.Pattern
	allow        Action
	whole        bool // for all repositories, and so for the mesh
}

type immutable struct {
	repositories []oci.Pattern
	tags, except []string
}

// readPolicy reads the document's setting. One that is not understood, as a
// newer version might write, allows nothing and lets no tag move.
func readPolicy(value []byte) (Document, *policy, error) {
	var d Document
	err := decodeStrict(value, &d)
	if err == nil {
		err = d.Check()
	}
	if err != nil {
		return Document{}, &policy{broken: true}, err
	}
	return d, compile(d), nil
}

// decodeStrict reads one JSON value that has no unknown fields.
func decodeStrict(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("decode: more than one value")
	}
	return nil
}

// compile makes a checked document ready.
func compile(d Document) *policy {
	p := &policy{anonymous: patterns(d.Anonymous.Pull)}
	for _, r := range d.Rules {
		c := rule{
			everyone:     slices.Contains(r.Who, everyone),
			who:          map[string]bool{},
			repositories: patterns(r.Repositories),
			whole:        slices.Contains(r.Repositories, "**"),
		}
		for _, name := range r.Who {
			c.who[name] = true
		}
		for _, name := range r.Allow {
			c.allow |= 1 << slices.Index(actionNames[:], name)
		}
		p.rules = append(p.rules, c)
	}
	for _, im := range d.Immutable {
		p.immutable = append(p.immutable, immutable{patterns(im.Repositories), im.Tags, im.Except})
	}
	return p
}

func patterns(texts []string) []oci.Pattern {
	var out []oci.Pattern
	for _, text := range texts {
		if p, err := oci.ParsePattern(text); err == nil { // Check has seen them all
			out = append(out, p)
		}
	}
	return out
}

// matchAny reports whether any of the patterns matches a name's components.
func matchAny(patterns []oci.Pattern, name []string) bool {
	return slices.ContainsFunc(patterns, func(p oci.Pattern) bool { return p.Match(name) })
}

func (r *rule) fits(name string) bool { return r.everyone || r.who[name] }

// about returns the policy without the rules that do not fit the account.
func (p *policy) about(name string) *policy {
	mine := *p
	mine.rules = slices.DeleteFunc(slices.Clone(p.rules), func(r rule) bool { return !r.fits(name) })
	return &mine
}

// allowed returns what an account, or nobody in particular (""), may do to a
// repository, and to the mesh.
func (p *policy) allowed(name string, admin bool, repo string) Action {
	if admin {
		return inRepository | Admin
	}
	parts := oci.Components(repo)
	var act Action
	if name != "" {
		act = p.ruled(name, parts) | p.administers(name)
	}
	if matchAny(p.anonymous, parts) {
		act |= Pull | List
	}
	return act
}

// ruled returns what the first rule that fits allows.
func (p *policy) ruled(name string, repo []string) Action {
	for _, r := range p.rules {
		if r.fits(name) && matchAny(r.repositories, repo) {
			return r.allow & inRepository
		}
	}
	return 0
}

// administers returns Admin where the first rule about all repositories that
// fits the account says so.
func (p *policy) administers(name string) Action {
	for _, r := range p.rules {
		if r.whole && r.fits(name) {
			return r.allow & Admin
		}
	}
	return 0
}

// Immutable reports whether the tag, once it names a manifest, must keep naming
// that one and must stay. It is true where that cannot be told.
func (a *Authority) Immutable(repo, tag string) bool {
	s, err := a.current()
	return err != nil || s.policy.immutableTag(repo, tag)
}

// HasImmutable reports whether any tag of the repository is immutable. It is true
// where that cannot be told.
func (a *Authority) HasImmutable(repo string) bool {
	s, err := a.current()
	if err != nil || s.policy.broken {
		return true
	}
	parts := oci.Components(repo)
	return parts == nil || slices.ContainsFunc(s.policy.immutable, func(im immutable) bool { return matchAny(im.repositories, parts) })
}

func (p *policy) immutableTag(repo, tag string) bool {
	parts := oci.Components(repo)
	if p.broken || parts == nil {
		return true
	}
	matches := func(pattern string) bool { return oci.MatchTag(pattern, tag) }
	for _, im := range p.immutable {
		if matchAny(im.repositories, parts) && slices.ContainsFunc(im.tags, matches) && !slices.ContainsFunc(im.except, matches) {
			return true
		}
	}
	return false
}
