package auth_test

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

const wholeDocument = `
rules:
  - who: [ci, "*"]
    repositories: ["team-a/**"]
    allow: [pull, push, delete, list]
  - {who: [ops], repositories: ["**"], allow: [admin]}
  - {who: ["*"], repositories: ["secret/*"], allow: []}
anonymous:
  pull: ["public/**"]
immutable:
  - repositories: ["release/**"]
    tags: ["v*", 1.10]
    except: ["*-rc*"]
limits:
  accountRequests: 100.5
  addressRequests: 5e1
  uploads: 64
`

func TestDocumentAsWritten(t *testing.T) {
	d, err := auth.ParseDocument([]byte(wholeDocument))
	if err != nil {
		t.Fatal(err)
	}
	want := auth.Document{
		Rules: []auth.Rule{
			{Who: []string{"ci", "*"}, Repositories: []string{"team-a/**"}, Allow: []string{"pull", "push", "delete", "list"}},
			{Who: []string{"ops"}, Repositories: []string{"**"}, Allow: []string{"admin"}},
			{Who: []string{"*"}, Repositories: []string{"secret/*"}, Allow: []string{}},
		},
		Anonymous: auth.Anonymous{Pull: []string{"public/**"}},
		Immutable: []auth.Immutable{{Repositories: []string{"release/**"}, Tags: []string{"v*", "1.10"}, Except: []string{"*-rc*"}}},
		Limits:    auth.Limits{AccountRequests: 100.5, AddressRequests: 50, Uploads: 64},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got  %+v\nwant %+v", d, want)
	}
	b, err := d.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := auth.ParseDocument(b); err != nil || !reflect.DeepEqual(again, d) {
		t.Errorf("written again as\n%s\nit is %+v, %v", b, again, err)
	}
}

func TestDocumentsThatAreRefused(t *testing.T) {
	rule := func(who, repositories, allow string) string {
		return fmt.Sprintf("rules:\n  - who: %s\n    repositories: %s\n    allow: %s\n", who, repositories, allow)
	}
	for name, row := range map[string]struct{ text, because string }{
		"nothing":                    {"", "empty"},
		"a comment":                  {"# nothing\n", "empty"},
		"no YAML":                    {"rules: [", "line 1"},
		"a list":                     {"[]", "is not a mapping"},
		"null":                       {"~", "is not a mapping"},
		"an unknown field":           {"rule: []", `line 1: "rule": unknown field; there are anonymous, immutable, limits, rules`},
		"a field in capitals":        {"Rules: []", "unknown field"},
		"an unknown field, deeper":   {"limits:\n  uploads: 1\n  upload: 2", `line 3: limits."upload": unknown field`},
		"a field twice":              {"limits: {}\nlimits: {}", "line 2"},
		"a field twice, deeper":      {"limits:\n  uploads: 1\n  uploads: 2", "line 3"},
		"two documents":              {"{}\n---\n{}", "second document"},
		"an anchor":                  {"rules: &a []", "anchors and aliases"},
		"an alias":                   {"anonymous: &a {pull: []}\nlimits: *a", "anchors and aliases"},
		"a merge":                    {"limits:\n  <<: {uploads: 1}", "unknown field"},
		"a tag":                      {"limits: {uploads: !!int 1}", "tags such as"},
		"a binary text":              {"anonymous: {pull: [!!binary cHVibGlj]}", "tags such as"},
		"a null text":                {"anonymous: {pull: [~]}", "is not a text"},
		"an empty field":             {"rules:\n", "is not a list"},
		"a text for a list":          {"anonymous: {pull: public}", "is not a list"},
		"a list for a text":          {"anonymous: {pull: [[public]]}", "is not a text"},
		"nobody by name":             {rule("[anonymous]", "[a]", "[pull]"), "line 2: rules[0].who[0]"},
		"an account's name in caps":  {rule("[Ann]", "[a]", "[pull]"), "rules[0].who[0]"},
		"a pattern of accounts":      {rule(`["ci-*"]`, "[a]", "[pull]"), "rules[0].who[0]"},
		"nobody at all":              {rule("[]", "[a]", "[pull]"), "rules[0].who: is missing or empty"},
		"no repository":              {rule("[ann]", "[]", "[pull]"), "rules[0].repositories: is missing or empty"},
		"an unknown action":          {rule("[ann]", "[a]", "[pull, write]"), "line 4: rules[0].allow[1]"},
		"an action in capitals":      {rule("[ann]", "[a]", "[Pull]"), "rules[0].allow[0]"},
		"any action":                 {rule("[ann]", "[a]", `["*"]`), "rules[0].allow[0]"},
		"no actions named":           {"rules: [{who: [ann], repositories: [a]}]", "allow: is missing; [] allows nothing"},
		"admin of one repository":    {rule("[ann]", "[a]", "[admin]"), "whole mesh"},
		"admin of nearly all":        {rule("[ann]", `["*/**"]`, "[admin]"), "whole mesh"},
		"a repository in capitals":   {rule("[ann]", "[Team]", "[pull]"), "lower-case"},
		"a repository's leading /":   {rule("[ann]", "[/a]", "[pull]"), "component is empty"},
		"a repository's trailing /":  {rule("[ann]", "[a/]", "[pull]"), "component is empty"},
		"a repository with //":       {rule("[ann]", "[a//b]", "[pull]"), "component is empty"},
		"an empty repository":        {rule("[ann]", `[""]`, "[pull]"), "component is empty"},
		"** within a component":      {rule("[ann]", `["a**"]`, "[pull]"), "whole components"},
		"***":                        {rule("[ann]", `["a/***"]`, "[pull]"), "whole components"},
		"a class":                    {rule("[ann]", `["a[bc]"]`, "[pull]"), "lower-case"},
		"a tag in a repository":      {rule("[ann]", `["a:b"]`, "[pull]"), "lower-case"},
		"another script":             {rule("[ann]", `["репо"]`, "[pull]"), "lower-case"},
		"a long pattern":             {rule("[ann]", `["`+strings.Repeat("a", 256)+`"]`, "[pull]"), "longer than"},
		"a tag pattern with a slash": {"immutable: [{repositories: [a], tags: [a/b]}]", "immutable[0].tags[0]"},
		"a tag pattern with **":      {`immutable: [{repositories: [a], tags: ["**"]}]`, "immutable[0].tags[0]"},
		"an empty tag pattern":       {`immutable: [{repositories: [a], tags: [""]}]`, "immutable[0].tags[0]"},
		"immutable without tags":     {"immutable: [{repositories: [a]}]", "immutable[0].tags: is missing"},
		"negative uploads":           {"limits: {uploads: -1}", "from 0 to"},
		"half an upload":             {"limits: {uploads: 1.5}", "not a whole number"},
		"too many uploads":           {"limits: {uploads: 9999999999999}", "not a whole number"},
		"a negative rate":            {"limits: {accountRequests: -0.5}", "neither 0 nor"},
		"a rate of nothing much":     {"limits: {accountRequests: 1e-300}", "neither 0 nor"},
		"a huge rate":                {"limits: {addressRequests: 1e7}", "neither 0 nor"},
		"a rate beyond numbers":      {"limits: {addressRequests: 1e999}", "not a number"},
		"NaN":                        {"limits: {addressRequests: .nan}", "not a number"},
		"NaN as a word":              {"limits: {addressRequests: NaN}", "not a number"},
		"infinity":                   {"limits: {addressRequests: .inf}", "not a number"},
		"a rate as a text":           {`limits: {addressRequests: "5"}`, "not a number"},
		"a hexadecimal rate":         {"limits: {addressRequests: 0x1p4}", "not a number"},
		"many rules":                 {"rules:\n" + strings.Repeat("- {who: [a], repositories: [a], allow: []}\n", 1001), "1001 entries"},
		"much":                       {"# " + strings.Repeat("x", 192<<10), "larger than"},
		"deep nesting":               {strings.Repeat("[", 100_000), "depth"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := auth.ParseDocument([]byte(row.text))
			if !errors.Is(err, oci.ErrUnsupported) || !strings.Contains(err.Error(), row.because) {
				t.Errorf("got %+v, %v; want ErrUnsupported that says %q", d, err, row.because)
			}
		})
	}
}

func TestAllThatIsWrongIsToldAtOnce(t *testing.T) {
	_, err := auth.ParseDocument([]byte("rules:\n  - who: [Ann]\n    repositories: [A]\n    allow: [write]\nlimits:\n  uploads: -1\n"))
	for _, want := range []string{"line 2: ", "line 3: ", "line 4: ", "line 6: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
	_, err = auth.ParseDocument([]byte("rules:\n" + strings.Repeat("- {who: [A], repositories: [a], allow: []}\n", 900)))
	if err == nil || len(err.Error()) > 5000 || !strings.Contains(err.Error(), "and 880 more") {
		t.Errorf("of many it says %.200v", err)
	}
}

// TestApplyChecks gives Apply what no YAML can say.
func TestApplyChecks(t *testing.T) {
	n := house(t)
	_, revision, err := n.Document()
	if err != nil {
		t.Fatal(err)
	}
	for name, d := range map[string]auth.Document{
		"NaN":             {Limits: auth.Limits{AccountRequests: math.NaN()}},
		"infinity":        {Limits: auth.Limits{AddressRequests: math.Inf(1)}},
		"no actions":      {Rules: []auth.Rule{{Who: []string{"*"}, Repositories: []string{"**"}}}},
		"a name not UTF8": {Anonymous: auth.Anonymous{Pull: []string{"a\xff"}}},
	} {
		if _, err := n.Apply(ctxOf(t), "test", d, revision); !errors.Is(err, oci.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := n.Apply(ctxOf(t), "test", auth.Document{}, revision-1); !errors.Is(err, oci.ErrConflict) {
		t.Errorf("on top of another document: %v", err)
	}
	if _, err := n.Apply(ctxOf(t), "test", auth.Document{}, 0); !errors.Is(err, oci.ErrConflict) {
		t.Errorf("as the first document, which it is not: %v", err)
	}
	if _, err := n.Apply(ctxOf(t), "test", auth.Document{}, revision); err != nil {
		t.Errorf("an empty document: %v", err)
	}
}

func TestDiff(t *testing.T) {
	parse := func(text string) auth.Document {
		d, err := auth.ParseDocument([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	old := parse(wholeDocument)
	if got := auth.Diff(old, old); got != "" {
		t.Errorf("of nothing: %q", got)
	}
	changed := parse(strings.NewReplacer("[ops]", "[ops, eve]", "uploads: 64", "uploads: 65", `pull: ["public/**"]`, `pull: ["public/**", "more/*"]`).Replace(wholeDocument))
	want := `- rule: who [ops], repositories [**], allow [admin]
+ rule: who [ops, eve], repositories [**], allow [admin]
+ anonymous: pull more/*
- limit: uploads 64
+ limit: uploads 65
`
	if got := auth.Diff(old, changed); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := auth.Diff(auth.Document{}, old); strings.Count(got, "\n") != 8 || strings.Contains(got, "- ") {
		t.Errorf("from nothing:\n%s", got)
	}
	// Rules that change places change what is allowed.
	swapped := old
	swapped.Rules = []auth.Rule{old.Rules[1], old.Rules[0], old.Rules[2]}
	if got := auth.Diff(old, swapped); strings.Count(got, "\n") != 2 {
		t.Errorf("of an order:\n%s", got)
	}
}

func TestFirstRuleDecides(t *testing.T) {
	n := house(t)
	n.apply(t, `
rules:
  - {who: [ann], repositories: ["team/secret"], allow: []}
  - {who: [ann], repositories: ["team/**"], allow: [pull]}
  - {who: ["*"], repositories: ["team/**", "**"], allow: [push, admin]}
`)
	ann, bob := basic("ann", annPassword), basic("bob", bobPassword)
	wantErr(t, "ann in the secret one", n.may(ann, "team/secret", auth.Pull), oci.ErrDenied)
	wantErr(t, "ann's pull", n.may(ann, "team/a", auth.Pull), nil)
	wantErr(t, "ann's push, which a later rule allows", n.may(ann, "team/a", auth.Push), oci.ErrDenied)
	wantErr(t, "bob's push", n.may(bob, "team/secret", auth.Push), nil)
	wantErr(t, "ann and the mesh, by the first rule about all", n.may(ann, "", auth.Admin), nil)
	n.apply(t, `
rules:
  - {who: [ann], repositories: ["**"], allow: [pull]}
  - {who: ["*"], repositories: ["**"], allow: [admin]}
`)
	wantErr(t, "ann and the mesh, denied by the first", n.may(ann, "", auth.Admin), oci.ErrDenied)
	wantErr(t, "bob and the mesh", n.may(bob, "", auth.Admin), nil)
	wantErr(t, "bob's pull", n.may(bob, "x", auth.Pull), oci.ErrDenied)
}

func TestPatterns(t *testing.T) {
	n := house(t)
	nobody := show("GET", "/v2/", nil)
	for _, row := range []struct {
		pattern  string
		yes, not []string
	}{
		{"a", []string{"a"}, []string{"b", "a/b", "aa", "A", ""}},
		{"*", []string{"a", "abc", "a-b"}, []string{"a/b", ""}},
		{"**", []string{"a", "a/b", "a/b/c"}, []string{"", "/", "a/", "/a", "a//b", "../a", "a/../b", "a/./b", "a/%2e%2e/b", "A", "a\x00", "é"}},
		{"a/*", []string{"a/b"}, []string{"a", "a/b/c", "ab/c", "a/"}},
		{"a/**", []string{"a", "a/b", "a/b/c"}, []string{"ab", "ab/c", "b/a", "a/../b"}},
		{"**/a", []string{"a", "b/a", "c/b/a"}, []string{"ba", "a/b"}},
		{"a/**/b", []string{"a/b", "a/x/b", "a/x/y/b", "a/b/b"}, []string{"a", "b", "a/x", "a/bx"}},
		{"**/a/**/b/**", []string{"a/b", "x/a/y/b/z", "a/a/b/b"}, []string{"b/a", "a"}},
		{"a*c", []string{"ac", "abc", "abcc", "a.c"}, []string{"a/c", "acb", "bac"}},
		{"*-*-*", []string{"a-b-c", "a-b-c-d"}, []string{"a-b", "a/b-c-d"}},
		{"*a*b*", []string{"ab", "xaxbx", "aab"}, []string{"ba", "a/b"}},
	} {
		n.apply(t, fmt.Sprintf("anonymous: {pull: [%q]}", row.pattern))
		for _, repo := range row.yes {
			wantErr(t, row.pattern+" and "+repo, n.may(nobody, repo, auth.Pull), nil)
		}
		for _, repo := range row.not {
			wantErr(t, row.pattern+" and "+repo, n.may(nobody, repo, auth.Pull), oci.ErrUnauthorized)
		}
	}
}

// TestPatternsThatTakeLong would not end if a pattern could make the matcher try
// all ways.
func TestPatternsThatTakeLong(t *testing.T) {
	n := house(t)
	n.apply(t, fmt.Sprintf("anonymous: {pull: [%q, %q]}", strings.Repeat("*a", 120)+"*b", strings.Repeat("**/a/", 40)+"b"))
	nobody := show("GET", "/v2/", nil)
	for _, repo := range []string{strings.Repeat("a", 255), strings.Repeat("a/", 127) + "a"} {
		wantErr(t, repo, n.may(nobody, repo, auth.Pull), oci.ErrUnauthorized)
	}
}

func TestImmutable(t *testing.T) {
	n := house(t)
	for _, row := range []struct {
		repo, tag string
		want      bool
	}{
		{"team-a/release", "v1", true}, {"team-a/release/x", "v1.2.3", true}, {"team-a/release", "v", true},
		{"team-a/release", "v1-rc1", false}, {"team-a/release", "V1", false}, {"team-a/release", "latest", false},
		{"team-a/releases", "v1", false}, {"team-b/release", "v1", false}, {"Team-A/release", "v1", true}, {"", "v1", true},
	} {
		if got := n.Immutable(row.repo, row.tag); got != row.want {
			t.Errorf("%s:%s: %v", row.repo, row.tag, got)
		}
	}
}

func TestCatalogShowsWhatOneMaySee(t *testing.T) {
	n := house(t)
	repos := []string{"team-a/x", "shared/x", "public/x", "other"}
	for name, row := range map[string]struct {
		token string
		want  []string
		err   *oci.Error
	}{
		"the administrator":  {n.token(t, "root", rootPassword, "registry:catalog:*"), repos, nil},
		"ann":                {n.token(t, "ann", annPassword, "registry:catalog:*"), []string{"team-a/x", "shared/x", "public/x"}, nil},
		"bob":                {n.token(t, "bob", bobPassword, "registry:catalog:*"), []string{"shared/x", "public/x"}, nil},
		"nobody":             {n.token(t, "", "", "registry:catalog:*"), []string{"public/x"}, nil},
		"bob, not asked for": {n.token(t, "bob", bobPassword, "repository:shared/x:pull"), nil, oci.ErrUnauthorized},
	} {
		p, err := n.Identify(bearer(row.token))
		if err != nil {
			t.Fatal(err)
		}
		sees, err := n.Catalog(p)
		wantErr(t, name, err, row.err)
		if err != nil {
			continue
		}
		var got []string
		for _, repo := range repos {
			if sees(repo) {
				got = append(got, repo)
			}
		}
		if !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s sees %v, want %v", name, got, row.want)
		}
	}
}
