package metadata

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// What a digest names never changes, so a hit is answered from this replica. A
// miss may only mean that this replica has not heard of it, and is reported
// once it is proven not to be so. Tags move, and lists grow: these need the
// proof first.

// Manifest returns a manifest of repo by digest or tag.
func (c *Catalog) Manifest(ctx context.Context, repo string, ref oci.Reference) (Manifest, error) {
	if err := c.tasks.hold(); err != nil {
		return Manifest{}, err
	}
	defer c.tasks.release()
	look := func() (Manifest, error) { return c.byDigest(repo, ref.Digest) }
	if ref.Tag == "" {
		m, err := twice(ctx, c, look)
		return m, wrapRead("manifest", err)
	}
	fresh, err := c.freshen(ctx)
	if err != nil {
		return Manifest{}, wrapRead("tag", err)
	}
	look = func() (Manifest, error) { return c.byTag(repo, ref.Tag) }
	m, err := once(ctx, c, &fresh, look)
	m.Freshness = fresh
	return m, wrapRead("tag", err)
}

func (c *Catalog) byDigest(repo string, d digest.Digest) (Manifest, error) {
	m, ok, err := c.state.manifest(repo, d)
	if err == nil && !ok {
		err = c.unknown(repo)
	}
	if err == nil {
		m.Stale, err = c.state.staleManifest(repo, d)
	}
	return m, err
}

func (c *Catalog) byTag(repo, tag string) (Manifest, error) {
	m, ok, err := c.state.tagged(repo, tag)
	if err == nil && !ok {
		err = c.unknown(repo)
	}
	return m, err
}

// unknown returns the error for a manifest that repo does not hold.
func (c *Catalog) unknown(repo string) error {
	switch known, err := c.state.repoKnown(repo); {
	case err != nil:
		return err
	case known:
		return oci.ErrManifestUnknown
	default:
		return oci.ErrNameUnknown
	}
}

// Blob returns repo's link on a blob, or ErrBlobUnknown.
func (c *Catalog) Blob(ctx context.Context, repo string, d digest.Digest) (Blob, error) {
	if err := c.tasks.hold(); err != nil {
		return Blob{}, err
	}
	defer c.tasks.release()
	b, err := twice(ctx, c, func() (Blob, error) { return c.link(repo, d) })
	return b, wrapRead("blob", err)
}

func (c *Catalog) link(repo string, d digest.Digest) (Blob, error) {
	b, ok, err := c.state.blob(repo, d)
	if err == nil && !ok {
		err = oci.ErrBlobUnknown
	}
	return b, err
}

// ManifestHere is Manifest by digest as this replica knows it. A miss is proof
// only of what was committed before a Sync that came first: so one proof does
// for many reads.
func (c *Catalog) ManifestHere(repo string, d digest.Digest) (Manifest, error) {
	if err := c.tasks.hold(); err != nil {
		return Manifest{}, err
	}
	defer c.tasks.release()
	m, err := c.byDigest(repo, d)
	return m, wrapRead("manifest", err)
}

// BlobHere is Blob as this replica knows it; see ManifestHere.
func (c *Catalog) BlobHere(repo string, d digest.Digest) (Blob, error) {
	if err := c.tasks.hold(); err != nil {
		return Blob{}, err
	}
	defer c.tasks.release()
	b, err := c.link(repo, d)
	return b, wrapRead("blob", err)
}

// Linking lists repositories that link d, as this replica knows it: at most n,
// and no more than maxPage, in byte order after the name `after`, or from the
// beginning where that is ""; none is the end.
func (c *Catalog) Linking(d digest.Digest, after string, n int) ([]string, error) {
	repos, err := c.state.linking(d, Page{Last: after, N: n})
	return repos, wrapRead("repositories of a blob", err)
}

// Tags lists the tags of repo.
func (c *Catalog) Tags(ctx context.Context, repo string, p Page) (List[string], error) {
	return listing(ctx, c, func() ([]string, bool, error) {
		known, err := c.state.repoKnown(repo)
		if err == nil && !known {
			err = oci.ErrNameUnknown
		}
		if err != nil {
			return nil, false, err
		}
		return c.state.tags(repo, p)
	})
}

// TagsOn lists the tags that name a manifest of repo. It fails where it cannot
// be proved that this is all of them.
func (c *Catalog) TagsOn(ctx context.Context, repo string, d digest.Digest) ([]string, error) {
	if err := c.Sync(ctx); err != nil {
		return nil, err
	}
	tags, err := c.state.tagsOn(repo, d)
	return tags, wrapRead("tags of a manifest", err)
}

// Repositories lists the repositories that hold anything and pass sees, or all
// of these where that is nil. What passes must not depend on the page: the last
// name on one is where the next begins.
func (c *Catalog) Repositories(ctx context.Context, p Page, sees func(repo string) bool) (List[string], error) {
	return listing(ctx, c, func() ([]string, bool, error) { return c.state.repositories(p, sees) })
}

// Referrers lists the manifests of repo whose subject is subject: those of one
// artifact type, or of all where that is "". The subject need not be there.
// Page.Last is the digest of the last one seen.
func (c *Catalog) Referrers(ctx context.Context, repo string, subject digest.Digest, artifactType string, p Page) (List[v1.Descriptor], error) {
	return listing(ctx, c, func() ([]v1.Descriptor, bool, error) {
		return c.state.referrers(repo, subject, artifactType, p)
	})
}

func listing[T any](ctx context.Context, c *Catalog, look func() ([]T, bool, error)) (List[T], error) {
	if err := c.tasks.hold(); err != nil {
		return List[T]{}, err
	}
	defer c.tasks.release()
	fresh, err := c.freshen(ctx)
	if err != nil {
		return List[T]{}, wrapRead("list", err)
	}
	l, err := once(ctx, c, &fresh, func() (l List[T], err error) {
		l.Items, l.More, err = look()
		return l, err
	})
	l.Freshness = fresh
	return l, wrapRead("list", err)
}

// once is a read after freshen: a miss counts only if the replica was proven
// current, which a degraded read and TagReads Local leave to the miss.
func once[T any](ctx context.Context, c *Catalog, fresh *Freshness, look func() (T, error)) (T, error) {
	if c.cfg.TagReads != Local && !fresh.Degraded {
		return look()
	}
	v, err := look()
	if !missed(err) {
		return v, err
	}
	if err := c.certain(ctx); err != nil {
		return v, err
	}
	*fresh = Freshness{}
	return look()
}

// twice is a read by digest: a miss counts if it is one still after a proof.
func twice[T any](ctx context.Context, c *Catalog, look func() (T, error)) (T, error) {
	v, err := look()
	if !missed(err) {
		return v, err
	}
	if err := c.certain(ctx); err != nil {
		return v, err
	}
	return look()
}

func missed(err error) bool {
	return errors.Is(err, oci.ErrBlobUnknown) || errors.Is(err, oci.ErrManifestUnknown) || errors.Is(err, oci.ErrNameUnknown)
}

// freshen makes this replica current as far as Config.TagReads asks for it,
// and says how far the answer may lag.
func (c *Catalog) freshen(ctx context.Context) (Freshness, error) {
	if c.cfg.TagReads == Local || c.currentAlone() {
		return Freshness{}, nil
	}
	ctx, cancel := c.tasks.limit(ctx)
	defer cancel()
	err := c.current(ctx)
	switch {
	case err == nil:
		return Freshness{}, nil
	case c.cfg.TagReads == Strict, ctx.Err() != nil:
		return Freshness{}, err
	}
	fresh := Freshness{Degraded: true}
	c.proof.Lock()
	defer c.proof.Unlock()
	if !c.proof.last.IsZero() {
		fresh.Age = time.Since(c.proof.last)
	}
	return fresh, nil
}

// wrapRead says what was read; what is no answer of the vocabulary is a fault
// of this replica alone, and another node may do better.
func wrapRead(what string, err error) error {
	if err == nil {
		return nil
	}
	var known *oci.Error
	if !errors.As(err, &known) {
		err = oci.ErrUnavailable.Wrap(err)
	}
	return fmt.Errorf("read %s: %w", what, err)
}
