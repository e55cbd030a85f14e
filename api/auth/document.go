package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Document is the whole policy of a mesh: what "flotilla apply" takes and
// "flotilla get" shows. It holds no secrets. The zero value allows nobody
// anything, administrators apart.
type Document struct {
	Rules     []Rule      `json:"rules,omitempty" yaml:"rules,omitempty"`
	Anonymous Anonymous   `json:"anonymous,omitzero" yaml:"anonymous,omitempty"`
	Immutable []Immutable `json:"immutable,omitempty" yaml:"immutable,omitempty"`
	Limits    Limits      `json:"limits,omitzero" yaml:"limits,omitempty"`
}

// Rule says what some accounts may do to some repositories. The first rule that
// fits both decides, and what it does not allow is denied.
type Rule struct {
	Who          []string `json:"who" yaml:"who,flow"`                   // names of accounts; "*" is every account
	Repositories []string `json:"repositories" yaml:"repositories,flow"` // patterns: "*" within a component, "**" for any number of components
	Allow        []string `json:"allow" yaml:"allow,flow"`               // pull, push, delete, list; admin only with repository "**"
}

// everyone among those a rule is about stands for every account, but not for
// who has none.
const everyone = "*"

// Anonymous is what anybody may do, whatever the rules say.
type Anonymous struct {
	Pull []string `json:"pull,omitempty" yaml:"pull,flow,omitempty"` // patterns of repositories to pull and list
}

// Immutable names tags that, once they are there, neither move nor go.
type Immutable struct {
	Repositories []string `json:"repositories" yaml:"repositories,flow"`
	Tags         []string `json:"tags" yaml:"tags,flow"` // patterns: "*" is any run of characters
	Except       []string `json:"except,omitempty" yaml:"except,flow,omitempty"`
}

// Limits bound what one client may ask for, at each node. 0 is the default.
type Limits struct {
	AccountRequests float64 `json:"accountRequests,omitempty" yaml:"accountRequests,omitempty"` // per second and account
	AddressRequests float64 `json:"addressRequests,omitempty" yaml:"addressRequests,omitempty"` // per second and address, of those without an account
	Uploads         int     `json:"uploads,omitempty" yaml:"uploads,omitempty"`                 // open at once, per account
}

// What a document may hold. All patterns may be tried on every request.
const (
	maxDocument = 192 << 10 // bytes, as YAML and as stored
	maxEntries  = 1000      // rules, and entries of any list
	maxPatterns = 5000      // in the whole document
	minRate     = 0.01
	maxRate     = 1e6
	maxUploads  = 100_000
)

// problem is something wrong in a document, at the field that path names, such
// as rules[0].who[2].
type problem struct{ path, text string }

// Check returns ErrUnsupported naming all that is wrong with the document, or nil.
func (d Document) Check() error { return refuse(d.problems(), nil) }

// maxProblems bounds how much a refusal says.
const maxProblems = 20

// refuse makes one error of all problems; lines tells on which line the field
// of a path is, where that is known.
func refuse(problems []problem, lines map[string]int) error {
	if len(problems) == 0 {
		return nil
	}
	var texts []string
	for i, p := range problems {
		if i == maxProblems {
			texts = append(texts, fmt.Sprintf("and %d more", len(problems)-i))
			break
		}
		text := p.text
		if p.path != "" {
			text = p.path + ": " + text
		}
		if line := lines[p.path]; line > 0 {
			text = "line " + strconv.Itoa(line) + ": " + text
		}
		texts = append(texts, text)
	}
	return oci.ErrUnsupported.Because("the policy document: %s", strings.Join(texts, "; "))
}

func (d Document) problems() []problem {
	var c checker
	c.size("rules", len(d.Rules))
	for i, r := range d.Rules {
		c.rule(fmt.Sprintf("rules[%d]", i), r)
	}
	c.each("anonymous.pull", d.Anonymous.Pull, c.repository)
	c.size("immutable", len(d.Immutable))
	for i, im := range d.Immutable {
		at := fmt.Sprintf("immutable[%d]", i)
		c.some(at+".repositories", im.Repositories, c.repository)
		c.some(at+".tags", im.Tags, c.tag)
		c.each(at+".except", im.Except, c.tag)
	}
	c.rate("limits.accountRequests", d.Limits.AccountRequests)
	c.rate("limits.addressRequests", d.Limits.AddressRequests)
	if u := d.Limits.Uploads; u < 0 || u > maxUploads {
		c.add("limits.uploads", "%d is not from 0 to %d", u, maxUploads)
	}
	if c.patterns > maxPatterns {
		c.add("", "%d patterns are more than %d", c.patterns, maxPatterns)
	}
	return c.found
}

// checker gathers what is wrong with a document.
type checker struct {
	found    []problem
	patterns int
}

func (c *checker) add(path, format string, args ...any) {
	c.found = append(c.found, problem{path, fmt.Sprintf(format, args...)})
}

func (c *checker) size(path string, n int) {
	if n > maxEntries {
		c.add(path, "%d entries are more than %d", n, maxEntries)
	}
}

func (c *checker) each(path string, list []string, check func(string) error) {
	c.size(path, len(list))
	for i, text := range list {
		if err := check(text); err != nil {
			c.add(fmt.Sprintf("%s[%d]", path, i), "%.80q: %v", text, err)
		}
	}
}

// some is each for a list that may not be empty.
func (c *checker) some(path string, list []string, check func(string) error) {
	if len(list) == 0 {
		c.add(path, "is missing or empty")
	}
	c.each(path, list, check)
}

func (c *checker) rule(at string, r Rule) {
	c.some(at+".who", r.Who, func(name string) error {
		if name == anonymousName {
			return errors.New("what anybody may pull is under anonymous")
		}
		if name == everyone {
			return nil
		}
		return CheckAccountName(name)
	})
	c.some(at+".repositories", r.Repositories, c.repository)
	if r.Allow == nil {
		c.add(at+".allow", "is missing; [] allows nothing")
	}
	c.each(at+".allow", r.Allow, func(name string) error {
		if !slices.Contains(actionNames[:], name) {
			return fmt.Errorf("not one of %s", strings.Join(actionNames[:], ", "))
		}
		if name == Admin.String() && !slices.Contains(r.Repositories, "**") {
			return errors.New(`is about the whole mesh: it needs the repository "**"`)
		}
		return nil
	})
}

func (c *checker) repository(text string) error {
	c.patterns++
	_, err := oci.ParsePattern(text)
	return err
}

func (c *checker) tag(text string) error {
	c.patterns++
	return oci.CheckTagPattern(text)
}

// rate takes no NaN: it compares with nothing.
func (c *checker) rate(path string, v float64) {
	if v != 0 && !(v >= minRate && v <= maxRate) {
		c.add(path, "%v is neither 0 nor from %v to %v", v, minRate, math.Trunc(maxRate))
	}
}

// YAML returns the document as ParseDocument reads it.
func (d Document) YAML() ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(d), enc.Close()); err != nil {
		return nil, fmt.Errorf("encode policy document: %w", err)
	}
	return b.Bytes(), nil
}

// Diff tells in lines what makes new of old: "- " goes, "+ " comes. Nothing is
// "". Rules are in order, since the first one that fits decides.
func Diff(old, new Document) string {
	a, b := old.lines(), new.lines()
	// common[i][j] is the length of the longest common subsequence of a[i:] and b[j:].
	common := make([][]uint16, len(a)+1)
	for i := range common {
		common[i] = make([]uint16, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out strings.Builder
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			out.WriteString("- " + a[i] + "\n")
			i++
		default:
			out.WriteString("+ " + b[j] + "\n")
			j++
		}
	}
	return out.String()
}

// lines tells the document one entry to a line, for people; a checked one has
// some 3,000 at most.
func (d Document) lines() []string {
	list := func(texts []string) string { return "[" + strings.Join(texts, ", ") + "]" }
	var out []string
	for _, r := range d.Rules {
		out = append(out, fmt.Sprintf("rule: who %s, repositories %s, allow %s", list(r.Who), list(r.Repositories), list(r.Allow)))
	}
	for _, text := range d.Anonymous.Pull {
		out = append(out, "anonymous: pull "+text)
	}
	for _, im := range d.Immutable {
		out = append(out, fmt.Sprintf("immutable: repositories %s, tags %s, except %s", list(im.Repositories), list(im.Tags), list(im.Except)))
	}
	limit := func(name string, v float64) {
		if v != 0 {
			out = append(out, fmt.Sprintf("limit: %s %v", name, v))
		}
	}
	limit("accountRequests", d.Limits.AccountRequests)
	limit("addressRequests", d.Limits.AddressRequests)
	limit("uploads", float64(d.Limits.Uploads))
	return out
}

// Document returns the policy in force here and its revision, 0 where there has
// been none. ErrUnavailable where this node cannot read it; the revision is told
// nevertheless, so that another document can be put in its place.
func (a *Authority) Document() (Document, uint64, error) {
	s, err := a.current()
	if err != nil {
		return Document{}, 0, err
	}
	if s.policy.broken {
		return Document{}, s.revision, oci.ErrUnavailable.Because("this node cannot read the policy document; perhaps a newer version wrote it")
	}
	return s.document, s.revision, nil
}

// Apply puts d in force in place of the document of that revision, which the
// caller has seen. ErrUnsupported where d is not fit, ErrConflict where the
// document is of another revision by now. Everywhere says that every live node
// judges by d.
func (a *Authority) Apply(ctx context.Context, actor string, d Document, revision uint64) (everywhere bool, err error) {
	if err := d.Check(); err != nil {
		return false, err
	}
	b, err := json.Marshal(d)
	if err != nil {
		return false, fmt.Errorf("encode policy document: %w", err)
	}
	if len(b) > maxDocument {
		return false, oci.ErrUnsupported.Because("the policy document is larger than %d KiB", maxDocument>>10)
	}
	return a.settings.Change(ctx, actor, Change{Key: policyKey, Value: b, If: &revision})
}
