package auth

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// ParseDocument reads a policy document in YAML and checks the whole of it: all
// that is wrong is told at once in one ErrUnsupported, with line numbers. It is
// strict: fields that are unknown or given twice, other types than a field has,
// more than one document, anchors, aliases and tags are errors. Texts are taken
// as they are written, so that the tag 1.10 is not the number 1.1.
func ParseDocument(b []byte) (Document, error) {
	if len(b) > maxDocument {
		return Document{}, oci.ErrUnsupported.Because("the policy document is larger than %d KiB", maxDocument>>10)
	}
	root, err := parseYAML(b)
	if err != nil {
		return Document{}, oci.ErrUnsupported.Because("the policy document: %v", err)
	}
	r := reader{lines: map[string]int{}}
	d := r.document(root)
	// What could not be read is not there to be checked: tell it alone.
	if len(r.problems) == 0 {
		r.problems = d.problems()
	}
	if err := refuse(r.problems, r.lines); err != nil {
		return Document{}, err
	}
	return d, nil
}

// parseYAML returns the only document's only value.
func parseYAML(b []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) || err == nil && len(doc.Content) != 1 {
		return nil, errors.New("it is empty; {} is a policy that allows nothing")
	} else if err != nil {
		return nil, err
	}
	var more yaml.Node
	switch err := dec.Decode(&more); {
	case err == nil:
		return nil, fmt.Errorf("line %d: a second document", more.Line)
	case !errors.Is(err, io.EOF):
		return nil, err
	}
	return doc.Content[0], nil
}

// reader walks the nodes of a YAML document and notes the line of each field.
type reader struct {
	lines    map[string]int
	problems []problem
}

func (r *reader) add(path, format string, args ...any) {
	r.problems = append(r.problems, problem{path, fmt.Sprintf(format, args...)})
}

func (r *reader) document(n *yaml.Node) (d Document) {
	r.fields("", n, map[string]func(string, *yaml.Node){
		"rules": func(at string, n *yaml.Node) {
			d.Rules = items(r, at, n, r.rule)
		},
		"anonymous": func(at string, n *yaml.Node) {
			r.fields(at, n, map[string]func(string, *yaml.Node){"pull": r.texts(&d.Anonymous.Pull)})
		},
		"immutable": func(at string, n *yaml.Node) {
			d.Immutable = items(r, at, n, r.immutable)
		},
		"limits": func(at string, n *yaml.Node) {
			r.fields(at, n, map[string]func(string, *yaml.Node){
				"accountRequests": r.rate(&d.Limits.AccountRequests),
				"addressRequests": r.rate(&d.Limits.AddressRequests),
				"uploads":         r.whole(&d.Limits.Uploads),
			})
		},
	})
	return d
}

func (r *reader) rule(at string, n *yaml.Node) (rule Rule) {
	r.fields(at, n, map[string]func(string, *yaml.Node){
		"who": r.texts(&rule.Who), "repositories": r.texts(&rule.Repositories), "allow": r.texts(&rule.Allow),
	})
	return rule
}

func (r *reader) immutable(at string, n *yaml.Node) (im Immutable) {
	r.fields(at, n, map[string]func(string, *yaml.Node){
		"repositories": r.texts(&im.Repositories), "tags": r.texts(&im.Tags), "except": r.texts(&im.Except),
	})
	return im
}

// plain notes where a node is, and reports whether it is of that kind without
// anything that makes YAML more than the text shows.
func (r *reader) plain(at string, n *yaml.Node, kind yaml.Kind, want string) bool {
	r.lines[at] = n.Line
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		r.add(at, "anchors and aliases are not taken: write it out")
	case n.Style&yaml.TaggedStyle != 0:
		r.add(at, "tags such as %.40s are not taken", n.Tag)
	case n.Kind != kind || kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		r.add(at, "is not %s", want)
	default:
		return true
	}
	return false
}

// fields reads a mapping whose keys are all known and there once.
func (r *reader) fields(at string, n *yaml.Node, known map[string]func(string, *yaml.Node)) {
	if !r.plain(at, n, yaml.MappingNode, "a mapping") {
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		name := key.Value
		if _, ok := known[name]; !ok {
			name = fmt.Sprintf("%.40q", name)
		}
		path := strings.TrimPrefix(at+"."+name, ".")
		if !r.plain(path, key, yaml.ScalarNode, "a name") {
			continue
		}
		read, ok := known[key.Value]
		switch {
		case !ok:
			r.add(path, "unknown field; there are %s", strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		case seen[key.Value]:
			r.add(path, "is there twice")
		default:
			seen[key.Value] = true
			read(path, n.Content[i+1])
		}
	}
}

// items reads a sequence.
func items[T any](r *reader, at string, n *yaml.Node, read func(string, *yaml.Node) T) []T {
	if !r.plain(at, n, yaml.SequenceNode, "a list") {
		return nil
	}
	all := make([]T, 0, len(n.Content))
	for i, item := range n.Content {
		all = append(all, read(fmt.Sprintf("%s[%d]", at, i), item))
	}
	return all
}

func (r *reader) texts(into *[]string) func(string, *yaml.Node) {
	return func(at string, n *yaml.Node) {
		*into = items(r, at, n, func(at string, n *yaml.Node) string {
			r.plain(at, n, yaml.ScalarNode, "a text")
			return n.Value
		})
	}
}

func (r *reader) rate(into *float64) func(string, *yaml.Node) {
	return func(at string, n *yaml.Node) {
		if !r.plain(at, n, yaml.ScalarNode, "a number") {
			return
		}
		v, err := strconv.ParseFloat(n.Value, 64)
		if tag := n.ShortTag(); err != nil || tag != "!!int" && tag != "!!float" {
			r.add(at, "%.40q is not a number", n.Value)
		}
		*into = v
	}
}

func (r *reader) whole(into *int) func(string, *yaml.Node) {
	return func(at string, n *yaml.Node) {
		if !r.plain(at, n, yaml.ScalarNode, "a number") {
			return
		}
		v, err := strconv.ParseInt(n.Value, 10, 32)
		if err != nil || n.ShortTag() != "!!int" {
			r.add(at, "%.40q is not a whole number", n.Value)
		}
		*into = int(v)
	}
}
