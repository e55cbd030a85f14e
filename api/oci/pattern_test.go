package oci_test

import (
	"strings"
	"testing"

	"github.com/flotilla-registry/flotilla/api/oci"
)

func TestPattern(t *testing.T) {
	for _, row := range []struct {
		pattern, matches, not string
	}{
		{"team", "team", "team/a teams"},
		{"team/*", "team/a team/abc", "team team/a/b"},
		{"team/**", "team team/a team/a/b", "teams/a"},
		{"**", "a a/b", ""},
		{"a*c/x", "ac/x abc/x", "a/x ab/x abc/x/y"},
		{"**/x", "x a/x a/b/x", "a/xx"},
	} {
		p, err := oci.ParsePattern(row.pattern)
		if err != nil {
			t.Fatalf("%s: %v", row.pattern, err)
		}
		for name := range strings.FieldsSeq(row.matches) {
			if !p.Match(oci.Components(name)) {
				t.Errorf("%s does not match %s", row.pattern, name)
			}
		}
		for name := range strings.FieldsSeq(row.not + " .a a//b A") {
			if p.Match(oci.Components(name)) {
				t.Errorf("%s matches %s", row.pattern, name)
			}
		}
	}
	for _, bad := range []string{"", "a//b", "/a", "a**", "A", "a b", strings.Repeat("a", 256)} {
		if _, err := oci.ParsePattern(bad); err == nil {
			t.Errorf("%.20q is a pattern", bad)
		}
	}
	if (oci.Pattern{}).Match([]string{"a"}) {
		t.Error("the zero pattern matches")
	}
}

func TestTagPattern(t *testing.T) {
	for _, row := range []struct {
		pattern, tag string
		want         bool
	}{
		{"v1", "v1", true},
		{"v1", "v11", false},
		{"v*", "v1.2-rc1", true},
		{"*-rc*", "v1-rc1", true},
		{"*-rc*", "v1", false},
		{"*", "Latest", true},
	} {
		if err := oci.CheckTagPattern(row.pattern); err != nil {
			t.Errorf("%s: %v", row.pattern, err)
		}
		if got := oci.MatchTag(row.pattern, row.tag); got != row.want {
			t.Errorf("%s and %s: %v", row.pattern, row.tag, got)
		}
	}
	for _, bad := range []string{"", "**", "a/b", "a b", strings.Repeat("a", 129)} {
		if oci.CheckTagPattern(bad) == nil {
			t.Errorf("%.20q is a pattern of tags", bad)
		}
	}
}
