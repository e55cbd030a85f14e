package api_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/flotilla-registry/flotilla/api/oci"
)

func decode[T any](t testing.TB, s string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%v in %s", err, s)
	}
	return v
}

// nextPage returns where the header Link points, or "".
func nextPage(t testing.TB, r reply) string {
	t.Helper()
	link := r.header.Get("Link")
	if link == "" {
		return ""
	}
	path, ok := strings.CutSuffix(link, `>; rel="next"`)
	if !ok || !strings.HasPrefix(path, "</v2/") {
		t.Fatalf("Link %q", link)
	}
	return path[1:]
}

func TestTagsAndCatalog(t *testing.T) {
	n := newNode(t, nil)
	body := n.image(t, "team/tags", "app", "")
	// Byte order: capitals, underscore, small letters.
	tags := []string{"1.0", "1.10", "1.9", "B", "Z9", "_x", "a", "latest"}
	for _, i := range []int{4, 0, 7, 2, 6, 1, 5, 3} {
		n.do(t, "PUT", "/v2/team/tags/manifests/"+tags[i], head{"Content-Type": oci.TypeImage}, body).want(t, 201, nil)
	}
	repos := []string{"a", "a-b", "a/b", "b", "team/tags"}
	for _, i := range []int{2, 0, 3, 1} {
		n.pushImage(t, repos[i], "app", "v1")
	}

	for name, list := range map[string]struct {
		path, key string
		all       []string
	}{
		"tags":    {"/v2/team/tags/tags/list", "tags", tags},
		"catalog": {"/v2/_catalog", "repositories", repos},
	} {
		get := func(t *testing.T, path string) (items []string, next string) {
			r := n.do(t, "GET", path, nil, nil).want(t, 200, head{"Content-Type": "application/json", "Warning": ""})
			r.want(t, 200, head{"Content-Length": fmt.Sprint(len(r.body))})
			fields := decode[map[string]json.RawMessage](t, r.body)
			if name == "tags" && string(fields["name"]) != `"team/tags"` {
				t.Errorf("name %s", fields["name"])
			}
			if items = decode[[]string](t, string(fields[list.key])); items == nil {
				t.Errorf("null, not an empty list: %s", r.body)
			}
			return items, nextPage(t, r)
		}
		for query, want := range map[string]struct {
			items []string
			more  bool
		}{
			"":                                       {list.all, false},
			"?n=2":                                   {list.all[:2], true},
			"?n=0":                                   {[]string{}, false},
			"?n=1000":                                {list.all, false},
			"?n=99999999999999999999":                {list.all, false},
			fmt.Sprintf("?n=%d", len(list.all)):      {list.all, false},
			fmt.Sprintf("?n=%d", len(list.all)-1):    {list.all[:len(list.all)-1], true},
			"?last=" + list.all[1]:                   {list.all[2:], false},
			"?n=1&last=" + list.all[1]:               {list.all[2:3], true},
			"?n=1&last=" + list.all[len(list.all)-2]: {list.all[len(list.all)-1:], false},
			"?last=" + list.all[len(list.all)-1]:     {[]string{}, false},
			"?n=2&last=0":                            {list.all[:2], true},
		} {
			t.Run(name+query, func(t *testing.T) {
				items, next := get(t, list.path+query)
				if !slices.Equal(items, want.items) || (next != "") != want.more {
					t.Errorf("got %v, next %q; want %v, more %v", items, next, want.items, want.more)
				}
			})
		}
		for n := 1; n <= len(list.all); n++ {
			t.Run(fmt.Sprintf("%s in pages of %d", name, n), func(t *testing.T) {
				var items []string
				for path := fmt.Sprintf("%s?n=%d", list.path, n); path != ""; {
					var page []string
					page, path = get(t, path)
					if len(page) > n {
						t.Errorf("a page of %d", len(page))
					}
					items = append(items, page...)
				}
				if !slices.Equal(items, list.all) {
					t.Errorf("got %v, want %v", items, list.all)
				}
			})
		}
		for _, odd := range []string{"?n=-1", "?n=x", "?n=1.5", "?n=%201"} {
			n.do(t, "GET", list.path+odd, nil, nil).refused(t, 400, "UNSUPPORTED")
		}
		if r := n.do(t, "GET", list.path+"?last=../..", nil, nil); r.status != 400 {
			t.Errorf("%s?last=../..: %d", list.path, r.status)
		}
	}
	n.do(t, "GET", "/v2/nobody/tags/list", nil, nil).refused(t, 404, "NAME_UNKNOWN")
	if r := n.do(t, "GET", "/v2/team/tags/tags/list?n=1&ns=docker.io", nil, nil); !strings.Contains(nextPage(t, r), "ns=docker.io") {
		t.Errorf("the next page forgets ns: %s", r.header.Get("Link"))
	}
}
