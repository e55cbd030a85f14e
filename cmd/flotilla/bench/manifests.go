package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
)

const (
	smallConfig = 512
	smallLayer  = 1024
	readTags    = 100 // tags that the manifest reads go round
	tagsPerPut  = 10  // the specification has registries take at least so many
)

// small pushes the blobs of an image that is all names, for manifests about it.
func (st *stage) small(ctx context.Context, r repository) (manifestTemplate, error) {
	blobs, err := st.pushed(ctx, r, []int64{smallConfig, smallLayer})
	if err != nil {
		return manifestTemplate{}, err
	}
	return newTemplate(blobs)
}

// manifestPut starts each round in an empty repository.
func manifestPut(_ context.Context, st *stage) (prepare, error) {
	return func(ctx context.Context, round int) (timed, error) {
		r := st.repository(fmt.Sprintf("manifest-put-%d", round))
		template, err := st.small(ctx, r)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, span time.Duration) (work, error) {
			return st.count(ctx, span, st.opts.Workers, func(ctx context.Context, s *session, i int) error {
				tag := tagName(i)
				r.ledger.tag(r.name, tag)
				return r.putManifest(ctx, s, tag, template.numbered(uint64(i)))
			})
		}, nil
	}, nil
}

func tagName(i int) string { return fmt.Sprintf("v%06d", i) }

func manifestRead(method string) ready {
	return func(ctx context.Context, st *stage) (prepare, error) {
		r := st.repository("manifest-read")
		template, err := st.small(ctx, r)
		if err != nil {
			return nil, err
		}
		err = st.spread(ctx, readTags, st.opts.Workers, func(ctx context.Context, s *session, i int) error {
			r.ledger.tag(r.name, tagName(i))
			return r.putManifest(ctx, s, tagName(i), template.numbered(uint64(i)))
		})
		if err != nil {
			return nil, err
		}
		size := int64(len(template.body))
		return always(func(ctx context.Context, span time.Duration) (work, error) {
			return st.count(ctx, span, st.opts.Workers, func(ctx context.Context, s *session, i int) error {
				return r.getManifest(ctx, s, method, tagName(i%readTags), size)
			})
		}), nil
	}
}

// manyTags is the repository with many tags, made once for all workloads that
// need it: that takes long where a registry sets one tag in a request.
type manyTags struct {
	repository
	template manifestTemplate
	number   atomic.Uint64 // of the manifest put last
}

func (st *stage) withManyTags(ctx context.Context) (*manyTags, error) {
	if st.manyTags == nil && st.manyTagsErr == nil {
		m := &manyTags{repository: st.repository(manyTagsName)}
		st.manyTagsErr = st.makeTags(ctx, m)
		st.manyTags = m
	}
	return st.manyTags, st.manyTagsErr
}

const manyTagsName = "many-tags"

func (st *stage) makeTags(ctx context.Context, m *manyTags) (err error) {
	if m.template, err = st.small(ctx, m.repository); err != nil {
		return err
	}
	body := m.template.numbered(0)
	put := func(ctx context.Context, s *session, i int) error {
		m.ledger.tag(m.name, tagName(i))
		return m.putManifest(ctx, s, tagName(i), body)
	}
	// The first tags show whether one request may set several.
	first := m.batch(0, st.opts.Tags)
	if n, err := m.putTags(ctx, st.sessions[0], first, body); err != nil || n != len(first) {
		return st.spread(ctx, st.opts.Tags, st.opts.Workers, put)
	}
	batches := (st.opts.Tags + tagsPerPut - 1) / tagsPerPut
	return st.spread(ctx, batches-1, st.opts.Workers, func(ctx context.Context, s *session, i int) error {
		tags := m.batch(i+1, st.opts.Tags)
		n, err := m.putTags(ctx, s, tags, body)
		if err == nil && n != len(tags) {
			err = fmt.Errorf("%d of %d tags set", n, len(tags))
		}
		return err
	})
}

// batch names the tags of one request and enters them in the ledger.
func (m *manyTags) batch(i, total int) []string {
	var tags []string
	for n := i * tagsPerPut; n < min((i+1)*tagsPerPut, total); n++ {
		tags = append(tags, tagName(n))
		m.ledger.tag(m.name, tagName(n))
	}
	return tags
}

func tagList(ctx context.Context, st *stage) (prepare, error) {
	m, err := st.withManyTags(ctx)
	if err != nil {
		return nil, err
	}
	return always(func(ctx context.Context, span time.Duration) (work, error) {
		return st.count(ctx, span, 1, func(ctx context.Context, s *session, _ int) error {
			n, err := m.listTags(ctx, s, st.opts.Page)
			if err == nil && n != st.opts.Tags {
				err = fmt.Errorf("%d tags in the list instead of %d", n, st.opts.Tags)
			}
			return err
		})
	}), nil
}

func tagPut(ctx context.Context, st *stage) (prepare, error) {
	m, err := st.withManyTags(ctx)
	if err != nil {
		return nil, err
	}
	return always(func(ctx context.Context, span time.Duration) (work, error) {
		return st.count(ctx, span, st.opts.Workers, func(ctx context.Context, s *session, i int) error {
			return m.putManifest(ctx, s, tagName(i%st.opts.Tags), m.template.numbered(m.number.Add(1)))
		})
	}), nil
}

// imageSizes are a config and the layers.
func (st *stage) imageSizes() []int64 {
	return append([]int64{smallConfig}, repeat(st.opts.LayerSize, st.opts.Layers)...)
}

func imagePush(_ context.Context, st *stage) (prepare, error) {
	r := st.repository("image")
	return func(_ context.Context, round int) (timed, error) {
		blobs := st.content.fresh(st.imageSizes()...)
		template, err := newTemplate(blobs)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, _ time.Duration) (work, error) {
			err := r.pushImage(ctx, st, blobs, tagName(round), template.body)
			return work{ops: 1, bytes: totalSize(blobs)}, err
		}, nil
	}, nil
}

// pushImage does what clients do: ask for each blob before it is pushed.
func (r repository) pushImage(ctx context.Context, st *stage, blobs []blob, tag string, manifest []byte) error {
	err := st.spread(ctx, len(blobs), st.opts.Transfers, func(ctx context.Context, s *session, i int) error {
		if err := r.headBlob(ctx, s, blobs[i].digest, 404); err != nil {
			return err
		}
		return r.push(ctx, s, blobs[i])
	})
	if err != nil {
		return err
	}
	r.ledger.tag(r.name, tag)
	return r.putManifest(ctx, st.sessions[0], tag, manifest)
}

func imagePull(ctx context.Context, st *stage) (prepare, error) {
	r := st.repository("image")
	blobs := st.content.fresh(st.imageSizes()...)
	template, err := newTemplate(blobs)
	if err != nil {
		return nil, err
	}
	const tag = "pull"
	if err := r.pushImage(ctx, st, blobs, tag, template.body); err != nil {
		return nil, err
	}
	manifest := blob{digest: digest.FromBytes(template.body), size: int64(len(template.body))}
	return always(func(ctx context.Context, _ time.Duration) (work, error) {
		if err := r.pullManifest(ctx, st.sessions[0], tag, manifest); err != nil {
			return work{}, err
		}
		err := st.spread(ctx, len(blobs), st.opts.Transfers, func(ctx context.Context, s *session, i int) error {
			return r.pull(ctx, s, blobs[i], true)
		})
		return work{ops: 1, bytes: manifest.size + totalSize(blobs)}, err
	}), nil
}
