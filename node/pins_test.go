package node

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// newSites starts two owners in zone a and two nodes in zone b that own
// nothing. No node may hold copies that it need not.
func newSites(t *testing.T, change ...func(*Config)) *cluster {
	c := newCluster(t, 2, append(change, func(cfg *Config) { cfg.Zone, cfg.Replicas, cfg.CacheSize = "a", 2, "0" })...)
	for range 2 {
		c.add(append(change, func(cfg *Config) { cfg.Zone, cfg.Weight, cfg.CacheSize = "b", 0, "0" })...)
	}
	c.await("all to know all", func() error {
		for _, n := range c.nodes {
			if got := len(n.members.Ring().Nodes()); got != 4 || len(n.members.Alive()) != 4 {
				return fmt.Errorf("%d members, %d alive", got, len(n.members.Alive()))
			}
		}
		return nil
	})
	return c
}

// pin adds a pin through node i and returns the warnings.
func (c *cluster) pin(i int, p Pin) []string {
	c.t.Helper()
	body, err := json.Marshal(p)
	if err != nil {
		c.t.Fatal(err)
	}
	var done PinChange
	if err := json.Unmarshal(c.operate(i, http.StatusCreated, http.MethodPost, "pins", body...).body, &done); err != nil || !done.Everywhere {
		c.t.Fatalf("%+v, %v", done, err)
	}
	return done.Warnings
}

// pinStatus is what node i says of its only pin.
func (c *cluster) pinStatus(i int) PinStatus {
	c.t.Helper()
	c.nodes[i].pinned.looking <- struct{}{} // let no older look answer
	c.nodes[i].pinned.until = time.Time{}
	<-c.nodes[i].pinned.looking
	var s PinsStatus
	if err := json.Unmarshal(c.operate(i, http.StatusOK, http.MethodGet, "pins/status").body, &s); err != nil || len(s.Pins) != 1 {
		c.t.Fatalf("%+v, %v", s, err)
	}
	return s.Pins[0]
}

// keepers returns which nodes keep the blobs of img in zone b.
func (c *cluster) keepers(img image) (at []int) {
	for d := range img.blobs {
		if k, ok := c.nodes[0].members.Ring().Keeper(d, "b"); ok {
			at = append(at, slices.IndexFunc(c.nodes, func(n *Node) bool { return n.ID() == k.ID }))
		}
	}
	slices.Sort(at)
	return slices.Compact(at)
}

// kept returns a check that of the nodes in zone b exactly the keepers hold
// these, and nobody those.
func (c *cluster) kept(these, those []image) func() error {
	return func() error {
		for k, img := range slices.Concat(these, those) {
			for d := range img.blobs {
				var want []int
				if keeper, ok := c.nodes[0].members.Ring().Keeper(d, "b"); ok && k < len(these) {
					want = []int{slices.IndexFunc(c.nodes, func(n *Node) bool { return n.ID() == keeper.ID })}
				}
				if got := c.holders(d, []int{2, 3}); !slices.Equal(got, want) {
					return fmt.Errorf("image %d: %s is held by %v, want %v", k, d, got, want)
				}
			}
		}
		return nil
	}
}

// TestPin follows a pin from the first push on to its end.
func TestPin(t *testing.T) {
	c := newSites(t)
	old, other := newImage(20<<10), newImage(21<<10)
	c.push(0, "app/web", "v0", old)
	c.push(0, "app/web", "test", other)
	if warnings := c.pin(0, Pin{Zone: "b", Repo: "app/*", Tag: "v*"}); warnings != nil {
		t.Errorf("warnings %q", warnings)
	}
	c.await("what was there before comes", c.kept([]image{old}, []image{other}))

	// No pass is due for a push: its event alone brings it.
	img := newImage(30 << 10)
	c.push(1, "app/web", "v1", img)
	c.await("a push comes at once", c.kept([]image{old, img}, []image{other}))
	size := int64(0)
	for _, img := range []image{old, img} {
		for _, b := range img.blobs {
			size += int64(len(b))
		}
	}
	want := PinStatus{Pin: Pin{Zone: "b", Repo: "app/*", Tag: "v*"}, Holds: true, Images: 2, Blobs: 4, Bytes: size}
	if got := c.pinStatus(3); got != want {
		t.Errorf("status %+v, want %+v", got, want)
	}

	// With the cache over its ceiling, only what is pinned stays.
	for _, through := range []int{2, 3} {
		c.pull(through, "app/web", "v1", img)
		c.pull(through, "app/web", "test", other)
	}
	c.heal("only what is pinned stays", c.others(), c.kept([]image{old, img}, []image{other}))

	// The tag moves on, and so does the pin.
	next := newImage(31 << 10)
	c.push(0, "app/web", "v1", next)
	c.heal("what the tag names now", c.others(), c.kept([]image{old, next}, []image{img, other}))

	c.operate(1, http.StatusOK, http.MethodDelete, "pins?zone=b&repo=app/*&tag=v*")
	c.heal("nothing is pinned", c.others(), c.kept(nil, []image{old, img, next, other}))
	c.pull(2, "app/web", "v0", old)
}

// TestPinIndex: what is pinned comes with all that belongs to it: the images of
// an index, a manifest that is too large for the log, and signatures that come
// later.
func TestPinIndex(t *testing.T) {
	c := newSites(t)
	c.pin(0, Pin{Zone: "b", Repo: "app", Tag: "v1"})
	amd, arm := newImage(10<<10), newImage(11<<10)
	for _, child := range []image{amd, arm} {
		c.push(0, "app", child.digest.String(), child)
	}
	index := v1.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex,
		Manifests: []v1.Descriptor{
			{MediaType: v1.MediaTypeImageManifest, Digest: amd.digest, Size: int64(len(amd.manifest))},
			{MediaType: v1.MediaTypeImageManifest, Digest: arm.digest, Size: int64(len(arm.manifest))},
		},
		Annotations: map[string]string{"filler": strings.Repeat("x", 300<<10)},
	}
	body, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	c.do(1, http.StatusCreated, http.MethodPut, "/v2/app/manifests/v1", body, "Content-Type", v1.MediaTypeImageIndex)
	large := image{blobs: map[digest.Digest][]byte{digest.FromBytes(body): nil}}
	c.await("the index and its images", c.kept([]image{amd, arm, large}, nil))

	signature := newImage(5 << 10)
	var m v1.Manifest
	if err := json.Unmarshal(signature.manifest, &m); err != nil {
		t.Fatal(err)
	}
	m.Subject = &v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: arm.digest, Size: int64(len(arm.manifest))}
	if signature.manifest, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	c.push(0, "app", digest.FromBytes(signature.manifest).String(), signature)
	c.await("a signature", c.kept([]image{amd, arm, large, signature}, nil))
	if s := c.pinStatus(0); !s.Holds || s.Images != 1 || s.Blobs != 7 {
		t.Errorf("status %+v", s)
	}
}

// TestPinDrain: a keeper that is drained leaves when the next node of the zone
// has all that it kept; with the last one the zone holds nothing.
func TestPinDrain(t *testing.T) {
	c := newSites(t)
	c.pin(0, Pin{Zone: "b", Repo: "**"})
	images := c.pushMany(4, 10<<10, 0, 1)
	all := []image{}
	for _, img := range images {
		all = append(all, img)
	}
	c.await("all at their keepers", c.kept(all, nil))
	ended := c.ending(2)
	c.operate(0, http.StatusAccepted, http.MethodPut, "members/n2/drain")
	if err := c.ended("the drained node to leave", ended); err != nil {
		t.Errorf("it ended with %v", err)
	}
	for _, img := range all {
		for d := range img.blobs {
			if !c.nodes[3].disk.Has(d) {
				t.Errorf("the other node lacks %s", d)
			}
		}
	}
	c.await("the pin holds at the other node", func() error {
		if s := c.pinStatus(0); !s.Holds || s.Images != 4 || s.Blobs != 8 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	c.nodes[3].Stop()
	c.await("nobody of the zone is up", func() error {
		if s := c.pinStatus(0); s.Holds || s.MissingBlobs != 8 || s.MissingBytes != s.Bytes || !strings.Contains(s.Why, "no member of the zone is up") {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// TestPinCutOff: a site that is cut off knows what it holds.
func TestPinCutOff(t *testing.T) {
	c := newSites(t)
	c.pin(0, Pin{Zone: "b", Repo: "**"})
	img := newImage(10 << 10)
	for at := c.keepers(img); len(at) > 1; at = c.keepers(img) {
		img = newImage(10 << 10)
	}
	alone := c.keepers(img)[0]
	c.push(0, "app", "v1", img)
	c.await("the image at its keeper", c.kept([]image{img}, nil))
	for _, i := range c.others(alone) {
		c.nodes[i].crash()
	}
	c.await("it to say so", func() error {
		got, err := c.nodes[alone].PinStatus(t.Context())
		if err != nil {
			return err
		}
		if s := got.(PinsStatus); !s.Degraded || len(s.Pins) != 1 || !s.Pins[0].Holds || s.Pins[0].Blobs != 2 || len(s.Silent) != 3 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}

// TestPinOut: what a keeper kept that stays away, another node of its zone keeps
// until it is back.
func TestPinOut(t *testing.T) {
	c := newSites(t, func(cfg *Config) { cfg.OutAfter = time.Second })
	c.pin(0, Pin{Zone: "b", Repo: "**"})
	var all []image
	for _, img := range c.pushMany(4, 10<<10, 0, 1) {
		all = append(all, img)
	}
	c.await("all at their keepers", c.kept(all, nil))
	c.nodes[2].crash()
	c.await("the other node to keep all", func() error {
		for _, img := range all {
			for d := range img.blobs {
				if !c.nodes[3].disk.Has(d) {
					return fmt.Errorf("it lacks %s", d)
				}
			}
		}
		return nil
	})
	c.restart(2)
	c.heal("all at their keepers again", c.others(), c.kept(all, nil))
}

// TestPinBounds: what is no pin is refused, and so is one too many.
func TestPinBounds(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	for _, row := range []struct {
		name string
		pin  Pin
	}{
		{"no zone", Pin{Repo: "a"}},
		{"a zone with a space", Pin{Zone: "a b", Repo: "a"}},
		{"a long zone", Pin{Zone: strings.Repeat("a", 64), Repo: "a"}},
		{"no repository", Pin{Zone: "z"}},
		{"a long repository", Pin{Zone: "z", Repo: strings.Repeat("a", 256)}},
		{"a bad repository", Pin{Zone: "z", Repo: "A//b"}},
		{"a long tag", Pin{Zone: "z", Repo: "a", Tag: strings.Repeat("a", 129)}},
		{"a bad tag", Pin{Zone: "z", Repo: "a", Tag: "a/b"}},
	} {
		if _, err := n.AddPin(t.Context(), "me", row.pin); !errors.Is(err, oci.ErrUnsupported) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
	var want []Pin
	for k := range maxPins {
		p := Pin{Zone: "later", Repo: fmt.Sprintf("r%03d/**", k)}
		want = append(want, p)
		done, err := n.AddPin(t.Context(), "me", p)
		if err != nil || len(done.Warnings) != 1 || !strings.Contains(done.Warnings[0], "no member is of zone later") {
			t.Fatalf("%+v, %v", done, err)
		}
	}
	if _, err := n.AddPin(t.Context(), "me", Pin{Zone: "later", Repo: "more"}); !errors.Is(err, oci.ErrDenied) {
		t.Errorf("one too many: %v", err)
	}
	if done, err := n.AddPin(t.Context(), "me", want[7]); err != nil || !done.Everywhere {
		t.Errorf("one that is there: %+v, %v", done, err)
	}
	if got, err := n.Pins(t.Context()); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d pins, %v", len(got), err)
	}
	if _, err := n.RemovePin(t.Context(), "me", Pin{Zone: "later", Repo: "r1/**"}); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("remove what is not there: %v", err)
	}
	n.Stop()
	c.restart(0)
	if got, err := c.nodes[0].Pins(t.Context()); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d pins after a restart, %v", len(got), err)
	}
	s, err := c.nodes[0].PinStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.(PinsStatus).Pins {
		if p.Holds || !strings.Contains(p.Why, "no member is of zone later") {
			t.Fatalf("%+v", p)
		}
	}
}

// TestPinMissing: what a zone lacks is counted, with the time that it takes over
// a line with a rate.
func TestPinMissing(t *testing.T) {
	c := newSites(t, func(cfg *Config) { cfg.ZoneRate = "64KiB" })
	img := newImage(40 << 10)
	c.push(0, "app", "v1", img)
	c.pin(0, Pin{Zone: "b", Repo: "app"})
	c.await("the image at its keepers", c.kept([]image{img}, nil))
	d := img.layer()
	at := c.holders(d, []int{2, 3})[0]
	c.await("a look at all blobs", func() error {
		if c.nodes[at].blobs.Health().At.IsZero() {
			return errors.New("there was none")
		}
		return nil
	})
	// Whoever has a copy left would give it to the keeper.
	c.await("nobody has a copy", func() error {
		for _, n := range c.nodes {
			if _, err := n.disk.Remove(d, time.Now().Add(time.Hour)); err != nil {
				return err
			}
		}
		if left := c.holders(d, c.others()); left != nil {
			return fmt.Errorf("held by %v", left)
		}
		return nil
	})
	size := int64(len(img.blobs[d]))
	takes := time.Duration(float64(size) / (64 << 10) * float64(time.Second))
	if s := c.pinStatus(1); s.Holds || s.MissingBlobs != 1 || s.MissingBytes != size || s.TimeToGo < takes || s.Why != "blobs are missing" {
		t.Errorf("status %+v", s)
	}
	if err := c.nodes[0].disk.Put(t.Context(), d, size, bytes.NewReader(img.blobs[d])); err != nil {
		t.Fatal(err)
	}
	c.heal("it is fetched again", c.others(), c.kept([]image{img}, nil))
	if s := c.pinStatus(1); !s.Holds || s.MissingBlobs != 0 || s.TimeToGo != 0 {
		t.Errorf("status %+v", s)
	}
}
