package metadata

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

const (
	inline       = 256 << 10 // of a manifest's body, in its entry
	inlineZones  = 32 << 10  // where entries cross the lines between zones
	everywhereIn = 5 * time.Second
)

// InlineLimit is the size up to which a manifest's body rides in its entry;
// larger ones are placed as a blob first.
func (c *Catalog) InlineLimit() int {
	zones := make(map[string]bool)
	for _, m := range c.state.members() {
		zones[m.Zone] = true
	}
	if len(zones) > 1 {
		return inlineZones
	}
	return inline
}

// PutManifest stores a manifest and moves its tags to it, all or nothing:
// ErrManifestBlobUnknown where repo lacks a blob that it needs, ErrDenied where a
// tag may not move, ErrOverdue where its body was placed too long ago.
func (c *Catalog) PutManifest(ctx context.Context, p Put) error {
	if len(p.Body) > inline { // not InlineLimit, which falls when a zone appears meanwhile
		return fmt.Errorf("put manifest: %w", oci.ErrManifestTooLarge.Because("it does not fit into an entry"))
	}
	if size := annotationBytes(p.Manifest); p.Manifest.Subject != nil && size > inline {
		return fmt.Errorf("put manifest: %w", oci.ErrManifestTooLarge.Because("with a subject its annotations may take %d bytes, not %d", inline, size))
	}
	cmd := manifestOp(p)
	if p.Body == nil {
		cmd.GetManifest().NamedBy = c.namedBy(p.Placed)
	}
	_, err := c.write(ctx, cmd)
	return wrapWrite("put manifest", err)
}

// namedBy returns until when, in log time, bytes may be named that were placed
// after the log time placed. What nothing names stays until it is LinkAge old, by
// the clock of who holds it and by log time. Half of that is the margin for a
// clock that was behind log time when the bytes came.
func (c *Catalog) namedBy(placed time.Time) int64 {
	return max(1, placed.Add(c.cfg.Timing.LinkAge/2).UnixNano()) // 0 would be never
}

func annotationBytes(m oci.Manifest) (n int) {
	for k, v := range m.Annotations {
		n += len(k) + len(v)
	}
	return n
}

// manifestOp carries annotations only where the list of referrers, which shows
// them, will ever name the manifest.
func manifestOp(p Put) *wire.Command {
	m := &wire.Manifest{
		Repo:         p.Repo,
		Tags:         p.Tags,
		Digest:       p.Manifest.Digest.String(),
		MediaType:    p.Manifest.MediaType,
		Size:         p.Manifest.Size,
		Body:         p.Body,
		Blobs:        digests(p.Manifest.Blobs),
		Children:     digests(p.Manifest.Children),
		ArtifactType: p.Manifest.ArtifactType,

		ImmutableTags: p.ImmutableTags,
	}
	if p.Manifest.Subject != nil {
		m.Subject = p.Manifest.Subject.Digest.String()
		m.Annotations = p.Manifest.Annotations
	}
	return &wire.Command{Op: &wire.Command_Manifest{Manifest: m}}
}

func digests(ds []oci.Descriptor) []string {
	out := make([]string, len(ds))
	for i, d := range ds {
		out[i] = d.Digest.String()
	}
	return out
}

// LinkBlob makes a blob that was placed, or offered again, after the log time
// placed part of repo. ErrOverdue says that this was too long ago: see
// Catalog.namedBy.
func (c *Catalog) LinkBlob(ctx context.Context, repo string, d digest.Digest, size int64, placed time.Time) error {
	op := &wire.Link{Repo: repo, Digest: d.String(), Size: size, NamedBy: c.namedBy(placed)}
	_, err := c.write(ctx, &wire.Command{Op: &wire.Command_Link{Link: op}})
	return wrapWrite("link blob", err)
}

// MountBlob links a blob that the repository from, or any where that is "",
// has a link on, and returns its size; else ErrBlobUnknown.
func (c *Catalog) MountBlob(ctx context.Context, repo string, d digest.Digest, from string) (int64, error) {
	op := &wire.Link{Repo: repo, Digest: d.String(), Mount: true, From: from}
	out, err := c.write(ctx, &wire.Command{Op: &wire.Command_Link{Link: op}})
	return out.Size, wrapWrite("mount blob", err)
}

// UnlinkBlob takes a blob out of repo; others that hold it are not touched.
// Everywhere says that every node that seems alive knows of it; reads by digest
// ask nobody, so another may answer with the blob until it does.
func (c *Catalog) UnlinkBlob(ctx context.Context, repo string, d digest.Digest) (everywhere bool, err error) {
	op := &wire.Unlink{Repo: repo, Digest: d.String()}
	return c.writeEverywhere(ctx, "unlink blob", &wire.Command{Op: &wire.Command_Unlink{Unlink: op}})
}

// DeleteTag drops a tag; for everywhere see UnlinkBlob.
func (c *Catalog) DeleteTag(ctx context.Context, repo, tag string) (everywhere bool, err error) {
	op := &wire.Untag{Repo: repo, Tag: tag}
	return c.writeEverywhere(ctx, "delete tag", &wire.Command{Op: &wire.Command_Untag{Untag: op}})
}

// DeleteManifest drops a manifest and every tag on it; for everywhere see
// UnlinkBlob.
func (c *Catalog) DeleteManifest(ctx context.Context, repo string, d digest.Digest) (everywhere bool, err error) {
	op := &wire.Unmanifest{Repo: repo, Digest: d.String()}
	return c.writeEverywhere(ctx, "delete manifest", &wire.Command{Op: &wire.Command_Unmanifest{Unmanifest: op}})
}

// DeleteTagged is DeleteManifest for a manifest that exactly these tags name, as
// TagsOn lists them: ErrConflict where others do by now. ErrUnsupported while a
// member of a level below 3 remains.
func (c *Catalog) DeleteTagged(ctx context.Context, repo string, d digest.Digest, tags []string) (everywhere bool, err error) {
	op := &wire.Unmanifest{Repo: repo, Digest: d.String(), Tags: sumTags(tags)}
	return c.writeEverywhere(ctx, "delete manifest", &wire.Command{Op: &wire.Command_Unmanifest{Unmanifest: op}})
}

// writeEverywhere is write for what may be known nowhere any more, or must be
// known everywhere, when it is answered.
func (c *Catalog) writeEverywhere(ctx context.Context, what string, cmd *wire.Command) (everywhere bool, err error) {
	out, err := c.write(ctx, cmd)
	if err != nil {
		return false, wrapWrite(what, err)
	}
	return c.everywhere(ctx, out.Index), nil
}

// everywhere waits until every member that gossip shows alive has applied the
// entry at index.
func (c *Catalog) everywhere(ctx context.Context, index uint64) bool {
	ctx, leave, err := c.tasks.enter(ctx)
	if err != nil {
		return false
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, everywhereIn)
	defer cancel()
	var lacking atomic.Int32
	var asked sync.WaitGroup
	alive := c.cfg.Alive()
	for _, m := range c.state.members() {
		if m.ID == c.cfg.ID || !slices.Contains(alive, m.ID) {
			continue
		}
		asked.Go(func() {
			if !c.hasApplied(ctx, m.ID, index) {
				lacking.Add(1)
			}
		})
	}
	asked.Wait()
	return lacking.Load() == 0
}

// Join enters a node, or what it announces anew, such as another address. Any
// member may do it for a newcomer, and each does it for itself. ErrDenied where
// the name is another's, the key is not the one known, or the node was removed.
func (c *Catalog) Join(ctx context.Context, m Member) error {
	for _, known := range c.state.members() {
		if sameMember(known, m) {
			return nil
		}
	}
	_, err := c.write(ctx, memberOp(m, nil))
	return wrapWrite("join", err)
}

func sameMember(a, b Member) bool {
	return a.ID == b.ID && a.Name == b.Name && a.Key.Equal(b.Key) && a.Zone == b.Zone &&
		a.Weight == b.Weight && a.Level == b.Level && a.Address == b.Address
}

// memberOp enters m; founding is nil but in the first entry of a mesh.
func memberOp(m Member, founding *Cluster) *wire.Command {
	op := &wire.Member{
		Id: m.ID, Name: m.Name, Key: m.Key, Zone: m.Zone, Weight: m.Weight, Level: m.Level, Address: m.Address,
	}
	if founding != nil {
		op.Cluster = &wire.Cluster{
			Id: founding.ID, Epoch: uint64(founding.Epoch), Replicas: int64(founding.Replicas), AllowSparse: founding.AllowSparse,
		}
	}
	return &wire.Command{Op: &wire.Command_Member{Member: op}}
}

func wrapWrite(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
