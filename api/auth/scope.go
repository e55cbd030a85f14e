package auth

import (
	"slices"
	"strings"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Scope is what a token is asked for: actions in a repository, or, where
// Repository is "", the catalogue, whatever the actions.
type Scope struct {
	Repository string
	Actions    Action
}

// maxScopes bounds what one token is asked for: a push asks for its repository
// and those it mounts from.
const maxScopes = 32

// The words of scopes: the distribution project's "Token Scope Documentation".
const (
	repositoryType = "repository"
	registryType   = "registry"
	catalogName    = "catalog"
	anyAction      = "*"
)

// scopeActions are the actions of a scope, in the order they are written. Who
// may pull may list, as clients ask for nothing else to list tags.
var scopeActions = []struct {
	name string
	act  Action
}{{"pull", Pull | List}, {"push", Push}, {"delete", Delete}}

// String returns the scope as challenges write it, or "" for one that names no
// repository or asks for nothing in it.
func (s Scope) String() string {
	switch {
	case s.Repository == "":
		return registryType + ":" + catalogName + ":" + anyAction
	case oci.CheckName(s.Repository) != nil:
		return ""
	}
	names := actionsOf(s.Actions)
	if len(names) == 0 {
		return ""
	}
	return repositoryType + ":" + s.Repository + ":" + strings.Join(names, ",")
}

// actionsOf returns the words that together stand for the actions; a list alone
// is asked for as a pull.
func actionsOf(act Action) []string {
	var names []string
	for _, a := range scopeActions {
		if act&a.act != 0 {
			names = append(names, a.name)
		}
	}
	return names
}

// actionOf returns what a word stands for, 0 for one that is unknown.
func actionOf(name string) Action {
	if name == anyAction {
		return inRepository
	}
	for _, a := range scopeActions {
		if a.name == name {
			return a.act
		}
	}
	return 0
}

// grant is what a token is limited to.
type grant struct {
	repositories map[string]Action
	catalog      bool
}

// parseScopes reads the scopes of a request, each of which may hold several
// between spaces. What is of an unknown type, names no repository, or asks for
// unknown actions is left out: nobody can be allowed it. Too many are
// ErrUnsupported.
func parseScopes(texts []string) (grant, error) {
	g := grant{repositories: map[string]Action{}}
	n := 0
	for _, text := range texts {
		for one := range strings.FieldsSeq(text) {
			if n++; n > maxScopes {
				return grant{}, oci.ErrUnsupported.Because("more than %d scopes for one token", maxScopes)
			}
			g.add(one)
		}
	}
	return g, nil
}

// add adds one scope: type, name, actions, with colons between them. The name
// may hold another colon, for a port, but then it is no repository of ours.
func (g *grant) add(text string) {
	kind, rest, _ := strings.Cut(text, ":")
	i := strings.LastIndexByte(rest, ':')
	if i < 0 {
		return
	}
	name, actions := rest[:i], strings.Split(rest[i+1:], ",")
	class, _, _ := strings.Cut(kind, "(") // "repository(plugin)" is deprecated and equal
	switch {
	case kind == registryType && name == catalogName && slices.Contains(actions, anyAction):
		g.catalog = true
	case class == repositoryType && oci.CheckName(name) == nil:
		for _, action := range actions {
			if act := actionOf(action); act != 0 {
				g.repositories[name] |= act
			}
		}
	}
}
