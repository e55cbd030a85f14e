package oci

import (
	"errors"
	"fmt"
	"strings"
)

// maxTag bounds a tag, and a pattern of tags.
const maxTag = 128

// Pattern matches repository names: "*" is any run of characters within one
// component, "**" as a component any number of components, none included. So
// "team/**" is team, team/a and team/a/b; "team/*" is team/a alone. The zero
// value matches nothing.
type Pattern struct {
	parts []string
}

// ParsePattern reads a pattern, which is no longer than a name may be. One that
// could match no repository, or could be read in two ways, is an error.
func ParsePattern(text string) (Pattern, error) {
	if len(text) > maxName {
		return Pattern{}, fmt.Errorf("longer than %d characters", maxName)
	}
	parts := strings.Split(text, "/")
	for _, part := range parts {
		switch {
		case part == "":
			return Pattern{}, errors.New("a component is empty")
		case part != "**" && strings.Contains(part, "**"):
			return Pattern{}, errors.New("** stands for whole components, and so alone between slashes")
		case strings.ContainsFunc(part, func(r rune) bool { return r != '*' && !nameRune(r) }):
			return Pattern{}, errors.New("names have lower-case letters, digits, . _ and - only")
		}
	}
	return Pattern{parts}, nil
}

func nameRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-'
}

// Components splits the name of a repository for Match; nil where it can be
// none, so that no pattern matches it. It asks for less than the grammar, which
// callers have checked: it is here so that a slip of theirs opens nothing.
func Components(repo string) []string {
	parts := strings.Split(repo, "/")
	for _, part := range parts {
		if part == "" || part[0] == '.' || strings.ContainsFunc(part, func(r rune) bool { return !nameRune(r) }) {
			return nil
		}
	}
	return parts
}

// Match reports whether the pattern matches a name's components.
func (p Pattern) Match(name []string) bool {
	return len(name) > 0 && glob(len(p.parts), len(name),
		func(i int) bool { return p.parts[i] == "**" },
		func(i, j int) bool { return MatchTag(p.parts[i], name[j]) })
}

// MatchTag reports whether a pattern whose "*" is any run of characters
// matches all of text.
func MatchTag(pattern, text string) bool {
	if !strings.Contains(pattern, "*") {
		return pattern == text
	}
	return glob(len(pattern), len(text),
		func(i int) bool { return pattern[i] == '*' },
		func(i, j int) bool { return pattern[i] == text[j] })
}

// glob matches a pattern of n symbols with a text of m. star says which symbols
// stand for any run, fits whether another symbol is the text's at j. It goes
// back to the last star only, which is enough, and so takes n*m steps at most.
func glob(n, m int, star func(i int) bool, fits func(i, j int) bool) bool {
	i, j := 0, 0
	last, from := -1, 0 // the last star met, and where the text after its run begins
	for j < m {
		switch {
		case i < n && star(i):
			last, from = i, j
			i++
		case i < n && fits(i, j):
			i++
			j++
		case last >= 0:
			from++
			i, j = last+1, from
		default:
			return false
		}
	}
	for i < n && star(i) {
		i++
	}
	return i == n
}

// CheckTagPattern returns nil for a pattern of tags, in which "*" is any run of
// characters; it is no longer than a tag may be.
func CheckTagPattern(text string) error {
	switch {
	case text == "" || len(text) > maxTag:
		return fmt.Errorf("not 1 to %d characters", maxTag)
	case strings.Contains(text, "**"):
		return errors.New("** is for repositories; tags have no components")
	case strings.ContainsFunc(text, func(r rune) bool {
		return r != '*' && !nameRune(r) && (r < 'A' || r > 'Z')
	}):
		return errors.New("tags have letters, digits, . _ and - only")
	}
	return nil
}
