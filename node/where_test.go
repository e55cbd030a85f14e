package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// where asks node i who holds an image.
func (c *cluster) where(i int, repo, ref string, header ...string) (w Whereabouts) {
	c.t.Helper()
	a := c.do(i, http.StatusOK, http.MethodGet, "/flotilla/v1/where?repo="+repo+"&ref="+ref, nil, header...)
	if err := json.Unmarshal(a.body, &w); err != nil {
		c.t.Fatal(err)
	}
	return w
}

// slowly puts the third node into a zone of its own, and has a missing copy of
// some MiB stay missing for a while.
func slowly(cfg *Config) {
	cfg.Replicas, cfg.RepairRate, cfg.Zone = 3, "64KiB", "a"
	if cfg.Name == "n2" {
		cfg.Zone = "b"
	}
}

// TestStatusShowsTransfers: who takes what from whom is seen at any node, and
// counted where it arrives.
func TestStatusShowsTransfers(t *testing.T) {
	c := newCluster(t, 3, slowly)
	c.nodes[2].crash()
	img := newImage(4 << 20)
	c.push(0, "app", "v1", img)
	c.restart(2)
	c.await("the repair is seen", func() error {
		s := c.nodes[0].Status(t.Context())
		if s.Node.Zone != "a" || len(s.Transfers) != 1 || s.TransfersTotal != 1 {
			return fmt.Errorf("%+v", s)
		}
		got := s.Transfers[0]
		if got.Digest != img.layer() || got.From.Zone != "a" || got.To != (NodeName{"n2", "b"}) || got.Size != 4<<20 || !got.Repair {
			return fmt.Errorf("%+v", got)
		}
		for _, t := range c.nodes[0].statusFor(t.Context(), false).Transfers {
			if t.Digest != "" || t.To != got.To {
				return fmt.Errorf("without digests: %+v", t)
			}
		}
		figures := string(c.do(2, http.StatusOK, http.MethodGet, "/metrics", nil).body)
		for _, line := range []string{`flotilla_transfers{from_zone="a"} 1`, `flotilla_transfers{from_zone="b"} 0`} {
			if !strings.Contains(figures, line+"\n") {
				return fmt.Errorf("no line %s", line)
			}
		}
		return nil
	})
}

// indexOf is an index of img, and of an image that is nowhere.
func indexOf(img image, nowhere digest.Digest) string {
	return fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[
		{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}},
		{"mediaType":%q,"digest":%q,"size":7,"platform":{"os":"\u001b[2J","architecture":"amd64"}}]}`, v1.MediaTypeImageIndex,
		v1.MediaTypeImageManifest, img.digest, len(img.manifest), v1.MediaTypeImageManifest, nowhere)
}

// TestWhere: what is told of an image is what lies on the disks, at every node,
// by zone; and what cannot be known is said to be so.
func TestWhere(t *testing.T) {
	zones := []string{"a", "a", "b"}
	c := newCluster(t, 3, slowly)
	img, nowhere := newImage(100<<10), digest.FromString("nowhere")
	c.push(0, "app", "amd64", img)
	index := c.putManifest(0, "app", v1.MediaTypeImageIndex, indexOf(img, nowhere))
	layer := img.layer()
	for i := range c.nodes {
		c.await("the owners hold the image, as is told", func() error {
			w := c.where(i, "app", index.String())
			var kinds, states []string
			for _, p := range w.Parts {
				kinds, states = append(kinds, p.Kind), append(states, p.State)
				want := map[string][]string{}
				for j, n := range c.nodes {
					if p.State == PartPlaced && n.disk.Has(p.Digest) {
						want[zones[j]] = append(want[zones[j]], n.cfg.Name)
					}
				}
				if p.State == PartPlaced && !reflect.DeepEqual(p.Holders, want) || len(p.Lacking) > 0 {
					return fmt.Errorf("%+v, want %v", p, want)
				}
			}
			if !slices.Equal(kinds, []string{"index", "manifest", "config", "layer", "manifest"}) ||
				!slices.Equal(states, []string{PartInLog, PartInLog, PartPlaced, PartPlaced, PartAbsent}) || w.More || len(w.Silent) > 0 {
				return fmt.Errorf("%+v", w)
			}
			if w.Parts[1].Platform != "linux/arm64/v8" || w.Parts[4].Platform != "" || w.Parts[3].Digest != layer || w.Parts[3].Size != 100<<10 {
				return fmt.Errorf("%+v", w.Parts)
			}
			if want := []ZoneParts{{Zone: "a", Blobs: 2, Of: 2}, {Zone: "b", Blobs: 2, Of: 2}}; !slices.Equal(w.Zones, want) {
				return fmt.Errorf("zones %+v", w.Zones)
			}
			return nil
		})
	}

	// A node that is down is asked nothing, and one that is back lacks what was
	// pushed meanwhile, until it is repaired.
	c.nodes[2].crash()
	late := newImage(4 << 20)
	c.push(0, "app", "late", late)
	w := c.where(0, "app", "late")
	if want := []NodeName{{"n2", "b"}}; !slices.Equal(w.Silent, want) || w.Digest != late.digest {
		t.Errorf("%+v", w)
	}
	missing := int64(0)
	for _, b := range late.blobs {
		missing += int64(len(b))
	}
	if want := (ZoneParts{Zone: "b", Of: 2, Missing: missing, Unsure: true}); w.Zones[1] != want {
		t.Errorf("zones %+v, want %+v", w.Zones, want)
	}
	c.restart(2)
	c.await("the node that is back lacks the layer", func() error {
		w := c.where(1, "app", "late")
		if p := w.Parts[2]; !slices.Equal(p.Lacking, []string{"n2"}) || len(w.Silent) > 0 || w.Zones[1].Unsure {
			return fmt.Errorf("%+v", w)
		}
		return nil
	})

	// Without a quorum nothing is proved absent.
	c.nodes[1].crash()
	c.nodes[2].crash()
	c.await("nothing is proved", func() error {
		if w := c.where(0, "app", index.String()); w.Parts[4].State != PartUnknown || len(w.Parts[3].Holders["a"]) == 0 {
			return fmt.Errorf("%+v", w)
		}
		return nil
	})
	c.await("the tag may be old", func() error {
		if w := c.where(0, "app", "late"); !w.Degraded || w.Digest != late.digest {
			return fmt.Errorf("%+v", w)
		}
		return nil
	})
}

// TestWhereIsolated: of blobs that a manifest names and the repository does not
// have nothing is told; and a manifest that is placed like a blob is, as one.
func TestWhereIsolated(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.AllowSparse = true })
	img := newImage(1000)
	c.push(0, "secret", "v1", img)
	c.do(0, http.StatusCreated, http.MethodPut, "/v2/thief/manifests/v1", img.manifest, "Content-Type", v1.MediaTypeImageManifest)
	for _, p := range c.where(0, "thief", "v1").Parts[1:] {
		if p.State != PartAbsent || len(p.Holders) > 0 {
			t.Errorf("told of another repository: %+v", p)
		}
	}
	large := strings.Replace(string(img.manifest), "{", `{"annotations":{"x":"`+strings.Repeat("y", 300<<10)+`"},`, 1)
	d := c.putManifest(0, "secret", v1.MediaTypeImageManifest, large)
	w := c.where(0, "secret", d.String())
	if p := w.Parts[0]; len(w.Parts) != 3 || p.State != PartPlaced || !slices.Equal(p.Holders["default"], []string{"n0"}) {
		t.Errorf("a large manifest: %+v", w)
	}

	// The holder of the mesh's secret may ask where there are accounts.
	if _, _, err := c.nodes[0].auth.AddUser(t.Context(), "test", "root", "rootrootroot", false); err != nil {
		t.Fatal(err)
	}
	c.do(0, http.StatusUnauthorized, http.MethodGet, "/flotilla/v1/where?repo=secret&ref=v1", nil)
	c.operate(0, http.StatusOK, http.MethodGet, "where?repo=secret&ref=v1")
}

// TestWhereIsBounded: an index of indexes without end, or of a great many
// images, ends the list and not the node.
func TestWhereIsBounded(t *testing.T) {
	c := newCluster(t, 1)
	child, mediaType := newImage(10).digest, v1.MediaTypeImageManifest
	for range maxImageManifests + 5 {
		child = c.putManifest(0, "deep", v1.MediaTypeImageIndex, fmt.Sprintf(
			`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":1}]}`, v1.MediaTypeImageIndex, mediaType, child))
		mediaType = v1.MediaTypeImageIndex
	}
	if w := c.where(0, "deep", child.String()); !w.More || len(w.Parts) != maxImageManifests+1 {
		t.Errorf("%d parts of an index that is too deep, more: %v", len(w.Parts), w.More)
	}
	var many []string
	for i := range maxImageParts + 5 {
		many = append(many, fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":1}`, v1.MediaTypeImageManifest, digest.FromString(fmt.Sprint(i))))
	}
	wide := c.putManifest(0, "wide", v1.MediaTypeImageIndex, fmt.Sprintf(
		`{"schemaVersion":2,"mediaType":%q,"manifests":[%s]}`, v1.MediaTypeImageIndex, strings.Join(many, ",")))
	if w := c.where(0, "wide", wide.String()); !w.More || len(w.Parts) != maxImageParts {
		t.Errorf("%d parts of an index that is too wide, more: %v", len(w.Parts), w.More)
	}
	if _, err := c.nodes[0].Where(t.Context(), "wide", oci.Reference{Tag: "none"}); !errors.Is(err, oci.ErrManifestUnknown) {
		t.Errorf("of a tag that is not there: %v", err)
	}
}
