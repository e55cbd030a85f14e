package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/node"
)

func TestParseImage(t *testing.T) {
	sum := digest.FromString("x").String()
	for _, row := range []struct{ image, repo, ref string }{
		{"app", "app", "latest"},
		{"team/app:v1", "team/app", "v1"},
		{"team/app@" + sum, "team/app", sum},
		{"team/app:v1@" + sum, "team/app", sum},
		{"", "", ""},
		{"App", "", ""},
		{"app:", "", ""},
		{"app:.x", "", ""},
		{"app:no tag@" + sum, "", ""},
		{"app@", "", ""},
		{"app@latest", "", ""},
		{"app@sha256:short", "", ""},
		{"localhost:5000/app", "", ""}, // a host says nothing here
	} {
		repo, ref, err := parseImage(row.image)
		if row.repo == "" {
			if err == nil {
				t.Errorf("%q is %s and %s", row.image, repo, ref)
			}
			continue
		}
		if err != nil || repo != row.repo || ref.String() != row.ref {
			t.Errorf("%q is %s and %s, %v", row.image, repo, ref, err)
		}
	}
}

// TestPrintWhere: people see at a glance which site has what.
func TestPrintWhere(t *testing.T) {
	sum := func(c string) digest.Digest { return digest.Digest("sha256:" + strings.Repeat(c, 64)) }
	crowd := strings.Split(strings.Repeat("n ", 10)+"n", " ")
	w := node.Whereabouts{
		Repository: "team/app", Reference: "v1", Digest: sum("1"), Degraded: true, Age: 3 * time.Second,
		Parts: []node.ImagePart{
			{Kind: "index", Digest: sum("1"), Size: 856, State: node.PartInLog},
			{Kind: "manifest", Digest: sum("2"), Size: 50 << 10, State: node.PartInLog, Platform: "linux/amd64"},
			{Kind: "config", Digest: sum("3"), Size: 2048, State: node.PartPlaced, Holders: map[string][]string{"a": crowd, "b": {"n4"}}},
			{Kind: "layer", Digest: sum("4"), Size: 8 << 20, State: node.PartPlaced, Holders: map[string][]string{"a": {"n1", "n2"}}, Lacking: []string{"n4"}},
			{Kind: "manifest", Digest: sum("5"), Size: 7, State: node.PartAbsent, Platform: "linux/arm64"},
			{Kind: "manifest", Digest: sum("6"), Size: 7, State: node.PartUnknown},
		},
		More:   true,
		Zones:  []node.ZoneParts{{Zone: "a", Blobs: 2, Of: 2}, {Zone: "b", Blobs: 1, Of: 2, Missing: 8 << 20}, {Zone: "c", Of: 2, Missing: 8<<20 + 2048, Unsure: true}},
		Silent: []node.NodeName{{Name: "n5", Zone: "c"}},
	}
	var out strings.Builder
	if err := printWhere(&out, w); err != nil {
		t.Fatal(err)
	}
	want := `team/app v1 is sha256:1111111111111111111111111111111111111111111111111111111111111111
the node has lost touch with the mesh: the tag is as it was up to 3s ago
KIND                  DIGEST               SIZE      HELD BY
index                 sha256:111111111111  856 B     every node
manifest linux/amd64  sha256:222222222222  50.0 KiB  every node
config                sha256:333333333333  2.0 KiB   a: n n n n n n n n and 3 more  b: n4  c: -
layer                 sha256:444444444444  8.0 MiB   a: n1 n2                       b: -   c: -  missing at n4
manifest linux/arm64  sha256:555555555555  7 B       nobody: the repository does not have it
manifest              sha256:666666666666  7 B       not known: the node has lost touch with the mesh
there is more than this list shows
n5 (c) gave no answer: what it holds is not in the list
of what is listed, a: complete; b: 1 of 2 blobs, 8.0 MiB missing; c: at least 0 of 2 blobs, up to 8.0 MiB missing
`
	if out.String() != want {
		t.Errorf("where prints\n%swant\n%s", out.String(), want)
	}
}

// TestWhereAsks: the question is what the node takes, and may be asked with a
// password of one's own.
func TestWhereAsks(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, password, _ := r.BasicAuth()
		if r.URL.Path != "/flotilla/v1/where" || r.URL.RawQuery != "ref=v1&repo=team%2Fapp" || name != "ann" || password != "secret" {
			http.Error(w, r.URL.String(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(node.Whereabouts{Repository: "team/app"})
	}))
	defer srv.Close()
	server := strings.Replace(srv.URL, "://", "://ann:secret@", 1)
	if err := execute(t.Context(), whereCommand(), "team/app:v1", "--json", "--server", server, "--secret-file", "/nowhere"); err != nil {
		t.Error(err)
	}
	if err := execute(t.Context(), whereCommand(), "Team/app", "--server", server); err == nil || !strings.Contains(err.Error(), "lower-case") {
		t.Errorf("error %v", err)
	}
}
