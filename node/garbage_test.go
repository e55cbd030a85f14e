package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// unused is how long names and bytes stay in these tests that nothing needs.
const unused = 3 * time.Second

// pushBlob pushes a blob that no manifest names.
func (c *cluster) pushBlob(i int, repo string, size int) digest.Digest {
	c.t.Helper()
	b, d := random(size)
	c.do(i, http.StatusCreated, http.MethodPost, "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), b)
	return d
}

// garbage is what node i would collect: which nodes' bytes, and which names.
func (c *cluster) garbage(i int) (entries map[string]int) {
	c.t.Helper()
	var g Garbage
	if err := json.Unmarshal(c.operate(i, http.StatusOK, http.MethodGet, "gc").body, &g); err != nil {
		c.t.Fatal(err)
	}
	entries = map[string]int{}
	for _, e := range g.Entries {
		if e.Why == "" || e.Since.IsZero() || time.Since(e.Since) < unused {
			c.t.Errorf("no reason to collect %+v", e)
		}
		entries[fmt.Sprintf("%s %s %s", e.Kind, e.Where, e.Digest)]++
	}
	return entries
}

// TestGarbage: names that nothing needs go, then bytes that nothing names. What
// goes is listed before.
func TestGarbage(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Replicas, cfg.Unused = 2, unused })
	all := c.others()
	kept := c.pushMany(2, 5000, 0, 1)
	stray := c.pushBlob(1, "app0", 2000)
	unlinked := c.pushBlob(2, "app0", 3000)
	deleted := newImage(4000)
	c.push(0, "app0", "old", deleted)
	c.await("the copies", func() error {
		for _, d := range []digest.Digest{stray, unlinked, deleted.layer()} {
			if n := len(c.holders(d, all)); n < 2 {
				return fmt.Errorf("%d copies of %s", n, d)
			}
		}
		return c.placed(all, kept, false)()
	})
	c.do(0, http.StatusAccepted, http.MethodDelete, "/v2/app0/blobs/"+unlinked.String(), nil)
	c.do(0, http.StatusAccepted, http.MethodDelete, "/v2/app0/manifests/"+deleted.digest.String(), nil)

	want := map[string]int{"link app0 " + stray.String(): 1}
	for d := range deleted.blobs {
		want["link app0 "+d.String()] = 1
	}
	for _, i := range c.holders(unlinked, all) {
		want[fmt.Sprintf("bytes n%d %s", i, unlinked)] = 1
	}
	for _, i := range all {
		c.await("the garbage to be listed", func() error {
			if got := c.garbage(i); !maps.Equal(got, want) {
				return fmt.Errorf("node %d lists %v, want %v", i, got, want)
			}
			return nil
		})
	}
	gone := append(slices.Collect(maps.Keys(deleted.blobs)), stray, unlinked)
	c.await("the garbage to go", func() error {
		c.operate(1, http.StatusAccepted, http.MethodPost, "gc")
		for _, d := range gone {
			for _, i := range all {
				if a, err := c.try(i, http.MethodHead, "/v2/app0/blobs/"+d.String(), nil); err != nil || a.status != http.StatusNotFound {
					return fmt.Errorf("%s is named at node %d: %d %w", d, i, a.status, err)
				}
			}
			if at := c.holders(d, all); len(at) > 0 {
				return fmt.Errorf("%s is held by %v", d, at)
			}
		}
		return nil
	})
	c.pullMany(kept, all...)
	if got := c.garbage(0); len(got) > 0 {
		t.Errorf("still garbage: %v", got)
	}
}

// putManifest puts a manifest under its digest alone, and returns that.
func (c *cluster) putManifest(i int, repo, mediaType, body string) digest.Digest {
	c.t.Helper()
	d := digest.FromString(body)
	c.do(i, http.StatusCreated, http.MethodPut, "/v2/"+repo+"/manifests/"+d.String(), []byte(body), "Content-Type", mediaType)
	return d
}

// TestKeepUntagged: manifests without a tag stay until the mesh is told
// otherwise, and then those stay that others need or that speak of others.
func TestKeepUntagged(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Unused = unused })
	tagged, child, plain := newImage(1000), newImage(1001), newImage(1002)
	c.push(0, "app", "v1", tagged)
	c.push(1, "app", child.digest.String(), child)
	c.push(2, "app", plain.digest.String(), plain)
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, child.digest, len(child.manifest))
	c.do(0, http.StatusCreated, http.MethodPut, "/v2/app/manifests/index", []byte(index), "Content-Type", v1.MediaTypeImageIndex)
	signature := c.putManifest(0, "app", v1.MediaTypeImageManifest, strings.Replace(string(tagged.manifest), `"layers"`,
		fmt.Sprintf(`"subject":{"mediaType":%q,"digest":%q,"size":%d},"layers"`, v1.MediaTypeImageManifest, tagged.digest, len(tagged.manifest)), 1))

	there := func(want int, d digest.Digest) func() error {
		return func() error {
			a, err := c.try(1, http.MethodGet, "/v2/app/manifests/"+d.String(), nil)
			if err == nil && a.status != want {
				err = fmt.Errorf("%d, want %d", a.status, want)
			}
			return err
		}
	}
	stay := []digest.Digest{tagged.digest, child.digest, signature, digest.FromString(index)}
	old := time.Now()
	stray := c.pushBlob(0, "app", 100) // younger than all of them
	c.heal("a round after all are old enough", c.others(), func() error {
		if _, err := c.nodes[0].catalog.Blob(t.Context(), "app", stray); err == nil {
			return fmt.Errorf("%v old", time.Since(old))
		}
		return nil
	})
	for _, d := range append(stay, plain.digest) {
		if err := there(http.StatusOK, d)(); err != nil {
			t.Errorf("without a policy: %s: %v", d, err)
		}
	}
	c.operate(0, http.StatusBadRequest, http.MethodPut, "gc/untagged?after=1s")
	c.operate(0, http.StatusBadRequest, http.MethodPut, "gc/untagged?after=soon")
	c.operate(2, http.StatusAccepted, http.MethodPut, "gc/untagged?after="+unused.String())
	if got := c.garbage(1); len(got) != 1 || got["manifest app "+plain.digest.String()] != 1 {
		t.Errorf("listed are %v, want the manifest that nothing keeps", got)
	}
	c.heal("what nothing keeps to go", c.others(), there(http.StatusNotFound, plain.digest))
	for _, d := range stay {
		if err := there(http.StatusOK, d)(); err != nil {
			t.Errorf("with the policy: %s: %v", d, err)
		}
	}
	c.pull(2, "app", child.digest.String(), child)
	c.do(0, http.StatusAccepted, http.MethodDelete, "/v2/app/manifests/"+tagged.digest.String(), nil)
	c.heal("what spoke of it to go too", c.others(), there(http.StatusNotFound, signature))
	c.operate(0, http.StatusAccepted, http.MethodPut, "gc/untagged?after=0")
	c.await("the policy to be gone", func() error {
		if after := c.nodes[1].Status(t.Context()).Cluster.UntaggedAfter; after != 0 {
			return fmt.Errorf("it is %v", after)
		}
		return nil
	})
}

// TestLost: a blob that no node has any more is unknown once all have said so,
// and not before. A push brings it back, and so does its file.
func TestLost(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Replicas = 2 })
	all := c.others()
	images := c.pushMany(1, 5000, all...)
	img := images["app0"]
	d := img.layer()
	path := "/v2/app0/blobs/" + d.String()
	c.await("all copies", c.placed(all, images, false))
	loseAt := func(nodes []int) {
		t.Helper()
		for _, i := range nodes {
			if err := os.Remove(c.blobFile(i, d)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
	answers := func(want int, nodes []int, methods ...string) func() error {
		return func() error {
			for _, i := range nodes {
				for _, method := range methods {
					if a, err := c.try(i, method, path, nil); err != nil || a.status != want {
						return fmt.Errorf("%s at node %d: %d, want %d; %w", method, i, a.status, want, err)
					}
				}
			}
			return nil
		}
	}
	lost := func(want int64) func() error {
		return func() error {
			if got := c.nodes[0].Status(t.Context()); got.Copies.Lost != want {
				return fmt.Errorf("%d lost, want %d: %q", got.Copies.Lost, want, got.Notes)
			}
			return nil
		}
	}

	away := c.others(c.leader(all...))[0]
	here := c.others(away)
	c.nodes[away].crash()
	loseAt(all)
	c.await("the member to be seen down", func() error {
		for _, i := range here {
			if !c.nodes[i].members.Down(c.nodes[away].ID()) {
				return fmt.Errorf("node %d does not", i)
			}
		}
		return nil
	})
	for range 3 {
		for _, i := range here {
			c.nodes[i].reconcile(t.Context())
		}
	}
	if err := answers(http.StatusServiceUnavailable, here, http.MethodGet)(); err != nil {
		t.Errorf("while a member is down: %v", err)
	}
	if err := answers(http.StatusOK, here, http.MethodHead)(); err != nil {
		t.Errorf("while a member is down, its link is there: %v", err)
	}
	c.restart(away)
	c.heal("the loss to be known", all, answers(http.StatusNotFound, all, http.MethodGet, http.MethodHead))
	c.heal("it to be counted", all, lost(1))

	c.push(1, "app0", "v1", img) // as a client does after HEAD
	if err := answers(http.StatusOK, all, http.MethodGet, http.MethodHead)(); err != nil {
		t.Errorf("after the push: %v", err)
	}
	c.heal("it to be counted no more", all, lost(0))

	c.await("all copies", c.placed(all, images, false))
	loseAt(all)
	c.heal("the loss to be known again", all, answers(http.StatusNotFound, all, http.MethodGet, http.MethodHead))
	file := c.blobFile(c.owners(0, d)[1], d)
	if err := os.WriteFile(filepath.Clean(file), img.blobs[d], 0o600); err != nil {
		t.Fatal(err)
	}
	c.heal("it to be found", all, answers(http.StatusOK, all, http.MethodGet, http.MethodHead))
	c.heal("all copies", all, c.placed(all, images, false))
	c.heal("it to be counted no more", all, lost(0))
}
