package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// modelClient pushes, pulls and deletes through any member. Its tags and its
// manifests are its own, so that it knows what they must be; repositories and
// blobs it shares with all others.
type modelClient struct {
	m    *model
	name string
	rnd  *rand.Rand
	tags map[string]*modelTag // by repository and tag
	made int                  // manifests
}

// modelTag is what a client knows of one of its tags.
type modelTag struct {
	repo, tag string
	image     *modelImage // nil: it was deleted
	sure      bool        // else the last answer was no answer
}

// modelImage is a manifest that was pushed.
type modelImage struct {
	digest digest.Digest
	body   []byte
	blobs  []digest.Digest
	begun  time.Time // when its manifest was first sent
}

func (c *modelClient) run(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
		}
		switch n := c.rnd.IntN(100); {
		case n < 25:
			c.push()
		case n < 35:
			c.pull()
		case n < 60:
			c.upload(c.m.anyPeer(c.rnd), c.repo(), c.m.anyBlob(c.rnd, 0, modelLoose))
		case n < 65:
			c.deleteTag()
		case n < 70:
			c.deleteManifest()
		case n < 95:
			c.unlink(c.repo(), c.m.anyBlob(c.rnd, 0, modelLoose))
		default:
			c.unlink(c.repo(), c.m.anyBlob(c.rnd, modelLoose, modelBlobs))
		}
	}
}

// repo returns a repository whose blobs clients unlink; keep one where none does.
func (c *modelClient) repo() string { return fmt.Sprintf("churn/%d", c.rnd.IntN(4)/3) }
func (c *modelClient) keep() string { return fmt.Sprintf("keep/%d", c.rnd.IntN(2)) }

// push makes an image of some blobs and pushes it as clients do.
func (c *modelClient) push() {
	repo, low := c.repo(), modelLoose-1
	if c.rnd.IntN(3) == 0 {
		repo, low = c.keep(), modelLoose
	}
	img := &modelImage{}
	for range 1 + c.rnd.IntN(3) {
		if d := c.m.anyBlob(c.rnd, low, modelBlobs); !slices.Contains(img.blobs, d) {
			img.blobs = append(img.blobs, d)
		}
	}
	c.made++
	img.body = c.manifest(img.blobs)
	img.digest = digest.FromBytes(img.body)
	t := c.tag(repo)
	if c.rnd.IntN(4) == 0 { // relies on blobs that it pushed long ago, if ever
		c.putManifest(t, img)
		return
	}
	for range 4 {
		for _, d := range img.blobs {
			if !c.offer(repo, d) {
				return
			}
		}
		c.m.dawdle(1)
		switch c.putManifest(t, img) {
		case http.StatusCreated:
			return
		case http.StatusNotFound, http.StatusBadRequest: // a blob went meanwhile
		default:
			return
		}
	}
}

func (c *modelClient) tag(repo string) *modelTag {
	name := fmt.Sprintf("%s-%d", c.name, c.rnd.IntN(4))
	t := c.tags[repo+":"+name]
	if t == nil {
		t = &modelTag{repo: repo, tag: name, sure: true}
		c.tags[repo+":"+name] = t
	}
	return t
}

// manifest is one that no other client makes, now and then too large for an
// entry of the log.
func (c *modelClient) manifest(blobs []digest.Digest) []byte {
	img := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config:      v1.Descriptor{MediaType: v1.MediaTypeImageConfig},
		Annotations: map[string]string{"by": fmt.Sprint(c.name, c.made, c.m.episode)},
	}
	if c.rnd.IntN(6) == 0 {
		img.Annotations["large"] = strings.Repeat("x", 40<<10)
	}
	for i, d := range blobs {
		desc := v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: int64(len(c.m.contents[d]))}
		if i == 0 {
			desc.MediaType = v1.MediaTypeImageConfig
			img.Config = desc
			continue
		}
		img.Layers = append(img.Layers, desc)
	}
	b, err := json.Marshal(img)
	if err != nil {
		c.m.t.Fatal(err)
	}
	return b
}

// offer makes d part of repo: it is there already, or is mounted, or uploaded.
func (c *modelClient) offer(repo string, d digest.Digest) bool {
	p := c.m.anyPeer(c.rnd)
	if c.rnd.IntN(10) < 7 && p.ask(http.MethodHead, "/v2/"+repo+"/blobs/"+d.String(), nil).status == http.StatusOK {
		c.m.dawdle(4)
		return true
	}
	if c.rnd.IntN(3) == 0 && c.mount(p, repo, d) {
		return true
	}
	return c.upload(p, repo, d)
}

func (c *modelClient) mount(p *modelPeer, repo string, d digest.Digest) bool {
	from := ""
	if c.rnd.IntN(2) == 0 {
		from = "&from=" + c.keep()
	}
	over := c.m.naming(repo, d, false)
	a := p.ask(http.MethodPost, "/v2/"+repo+"/blobs/uploads/?mount="+d.String()+from, nil)
	over(a.status == http.StatusCreated)
	if a.status == http.StatusAccepted {
		p.ask(http.MethodDelete, a.header.Get("Location"), nil)
	}
	c.m.note(d, "%s mounts it in %s at %s: %d", c.name, repo, p.short(), a.status)
	return a.status == http.StatusCreated
}

// upload pushes d until that succeeds.
func (c *modelClient) upload(p *modelPeer, repo string, d digest.Digest) bool {
	for range 6 {
		named := c.m.naming(repo, d, false)
		status := c.uploadOnce(p, repo, d)
		named(status == http.StatusCreated)
		c.m.note(d, "%s uploads it to %s at %s: %d", c.name, repo, p.short(), status)
		if status == http.StatusCreated {
			return true
		}
		p = c.m.anyPeer(c.rnd)
	}
	return false
}

func (c *modelClient) uploadOnce(p *modelPeer, repo string, d digest.Digest) int {
	content, path := c.m.contents[d], "/v2/"+repo+"/blobs/uploads/"
	if c.rnd.IntN(4) > 0 {
		return p.ask(http.MethodPost, path+"?digest="+d.String(), content).status
	}
	a := p.ask(http.MethodPost, path, nil)
	if a.status != http.StatusAccepted {
		return a.status
	}
	at := a.header.Get("Location")
	half := len(content) / 2
	if a = p.ask(http.MethodPatch, at, content[:half]); a.status != http.StatusAccepted {
		return a.status
	}
	return p.ask(http.MethodPut, at+"?digest="+d.String(), content[half:]).status
}

// putManifest pushes the manifest of img under t. A refusal leaves the tag as
// it was, unless an attempt before had no answer.
func (c *modelClient) putManifest(t *modelTag, img *modelImage) (status int) {
	was := *t
	img.begun = time.Now()
	for range 6 {
		p := c.m.anyPeer(c.rnd)
		if late := c.m.late(); late != nil && c.rnd.IntN(4) == 0 {
			p = late // what it knows may have expired
		}
		named := c.m.naming(t.repo, img.digest, true)
		t.sure = false
		status = p.ask(http.MethodPut, "/v2/"+t.repo+"/manifests/"+t.tag, img.body, "Content-Type", v1.MediaTypeImageManifest).status
		named(status == http.StatusCreated)
		switch {
		case status == http.StatusCreated:
			*t = modelTag{t.repo, t.tag, img, true}
			return status
		case status == http.StatusNotFound || status == http.StatusBadRequest:
			t.sure = was.sure
			return status
		}
		was.sure = false
	}
	return status
}

// known returns a tag that the client has, one that was not deleted and whose
// last push was answered.
func (c *modelClient) known() *modelTag {
	var all []*modelTag
	for _, t := range c.tags {
		if t.sure && t.image != nil {
			all = append(all, t)
		}
	}
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b *modelTag) int { return strings.Compare(a.repo+a.tag, b.repo+b.tag) })
	return all[c.rnd.IntN(len(all))]
}

func (c *modelClient) pull() {
	if t := c.known(); t != nil {
		c.check(c.m.anyPeer(c.rnd), t, false)
	}
}

// check pulls t from p: all of it must be there, bit for bit. A member may say
// that it cannot tell now, unless the mesh is at rest.
func (c *modelClient) check(p *modelPeer, t *modelTag, rest bool) {
	img := t.image
	fits := func(d digest.Digest, path string, want []byte) {
		a := p.ask(http.MethodGet, path, nil)
		excused := c.m.excused(d) || c.m.unlinkedSince(t.repo, d, img.begun)
		switch {
		case a.status == http.StatusOK && bytes.Equal(a.body.Bytes(), want):
		case a.status == http.StatusOK && a.header.Get("Docker-Content-Digest") != d.String():
			c.m.violated(d, "%s of %s at %s is %s", path, c.name, p.short(), a.header.Get("Docker-Content-Digest"))
		case a.status == http.StatusOK:
			c.m.violated(d, "%s at %s: %d bytes that differ", path, p.short(), a.body.Len())
		case excused, !rest && a.status == http.StatusServiceUnavailable:
		default:
			c.m.violated(d, "%s at %s: %d %s", path, p.short(), a.status, a.body.String())
		}
	}
	fits(img.digest, "/v2/"+t.repo+"/manifests/"+t.tag, img.body)
	for _, d := range img.blobs {
		fits(d, "/v2/"+t.repo+"/blobs/"+d.String(), c.m.contents[d])
	}
}

func (c *modelClient) deleteTag() {
	t := c.known()
	if t == nil {
		return
	}
	c.forget(t.image, []*modelTag{t}, "/v2/"+t.repo+"/manifests/"+t.tag)
}

// deleteAll deletes all tags that the client ever made. Their manifests expire.
func (c *modelClient) deleteAll() {
	for _, t := range c.tags {
		for range 6 {
			a := c.m.anyPeer(c.rnd).ask(http.MethodDelete, "/v2/"+t.repo+"/manifests/"+t.tag, nil)
			if a.status == http.StatusAccepted || a.status == http.StatusNotFound {
				break
			}
		}
	}
}

func (c *modelClient) deleteManifest() {
	t := c.known()
	if t == nil {
		return
	}
	var all []*modelTag
	for _, o := range c.tags {
		if o.repo == t.repo && o.image != nil && o.image.digest == t.image.digest {
			all = append(all, o)
		}
	}
	c.forget(t.image, all, "/v2/"+t.repo+"/manifests/"+t.image.digest.String())
}

func (c *modelClient) forget(img *modelImage, tags []*modelTag, path string) {
	for _, t := range tags {
		t.sure = false
	}
	answered := false
	for range 6 {
		a := c.m.anyPeer(c.rnd).ask(http.MethodDelete, path, nil)
		if a.status == http.StatusNotFound && !answered && !c.m.excused(img.digest) {
			c.m.violated(img.digest, "%s of %s is not there to be deleted", path, c.name)
		}
		if a.status == http.StatusAccepted || a.status == http.StatusNotFound {
			for _, t := range tags {
				t.image, t.sure = nil, true
			}
			return
		}
		answered = true // or may have been done
	}
}

// unlink takes a blob out of a repository for all clients.
func (c *modelClient) unlink(repo string, d digest.Digest) {
	over := c.m.unlinking(repo, d)
	status := c.m.anyPeer(c.rnd).ask(http.MethodDelete, "/v2/"+repo+"/blobs/"+d.String(), nil).status
	c.m.note(d, "%s unlinks it from %s: %d", c.name, repo, status)
	if status == http.StatusAccepted || status == http.StatusNotFound {
		over() // else it may still be done, any time
	}
}
