package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestPull: an image counts as pulled once all its blobs are here and right.
func TestPull(t *testing.T) {
	blobs := map[digest.Digest]string{}
	describe := func(content string) v1.Descriptor {
		blobs[digest.FromString(content)] = content
		return v1.Descriptor{Digest: digest.FromString(content)}
	}
	m := v1.Manifest{Config: describe("config"), Layers: []v1.Descriptor{describe("one"), describe("two"), describe("three"), describe("four")}}
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/lab/manifests/v1" {
			_ = json.NewEncoder(w).Encode(m)
			return
		}
		content, known := blobs[digest.Digest(strings.TrimPrefix(r.URL.Path, "/v2/lab/blobs/"))]
		if !known {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = w.Write([]byte(content))
	}))
	t.Cleanup(registry.Close)
	pull := func(tag string) (*puller, error) {
		p := &puller{repository: registry.URL + "/v2/lab", start: time.Now()}
		return p, p.image(t.Context(), tag, 3)
	}
	if p, err := pull("v1"); err != nil || p.first <= 0 {
		t.Errorf("first byte after %v, %v", p.first, err)
	}
	if _, err := pull("v2"); err == nil {
		t.Error("pulled a tag that is not there")
	}
	blobs[m.Layers[3].Digest] = "other"
	if _, err := pull("v1"); err == nil {
		t.Error("pulled a layer that is not what the manifest names")
	}
	delete(blobs, m.Layers[3].Digest)
	if _, err := pull("v1"); err == nil {
		t.Error("pulled a layer that is not there")
	}
}
