package bench

import (
	"context"
	"math/rand/v2"
	"net/http"
	"time"
)

func pushMonolithic(_ context.Context, st *stage) (prepare, error) {
	r := st.repository("push")
	return pushFresh(st, 1, st.opts.Size, func(ctx context.Context, s *session, b blob) error {
		return r.push(ctx, s, b)
	}), nil
}

func pushChunked(_ context.Context, st *stage) (prepare, error) {
	r := st.repository("chunked")
	return pushFresh(st, 1, st.opts.Size, func(ctx context.Context, s *session, b blob) error {
		return r.pushChunked(ctx, s, b, int64(st.opts.Chunk))
	}), nil
}

func pushParallel(_ context.Context, st *stage) (prepare, error) {
	r := st.repository("parallel")
	return pushFresh(st, st.opts.Parts, st.opts.PartSize, func(ctx context.Context, s *session, b blob) error {
		return r.push(ctx, s, b)
	}), nil
}

// pushFresh is a round of pushing n new blobs.
func pushFresh(st *stage, n int, size Size, push func(context.Context, *session, blob) error) prepare {
	return func(context.Context, int) (timed, error) {
		blobs := st.content.fresh(repeat(size, n)...)
		return func(ctx context.Context, _ time.Duration) (work, error) {
			err := st.spread(ctx, n, st.opts.Workers, func(ctx context.Context, s *session, i int) error {
				return push(ctx, s, blobs[i])
			})
			return work{ops: n, bytes: totalSize(blobs)}, err
		}, nil
	}
}

func pullOne(check bool) ready {
	return func(ctx context.Context, st *stage) (prepare, error) {
		return pullPushed(ctx, st, 1, st.opts.Size, check)
	}
}

func pullParallel(ctx context.Context, st *stage) (prepare, error) {
	return pullPushed(ctx, st, st.opts.Parts, st.opts.PartSize, true)
}

// pullPushed pushes n blobs, for rounds of pulling them.
func pullPushed(ctx context.Context, st *stage, n int, size Size, check bool) (prepare, error) {
	r := st.repository("pull")
	blobs, err := st.pushed(ctx, r, repeat(size, n))
	if err != nil {
		return nil, err
	}
	return always(func(ctx context.Context, _ time.Duration) (work, error) {
		err := st.spread(ctx, n, st.opts.Workers, func(ctx context.Context, s *session, i int) error {
			return r.pull(ctx, s, blobs[i], check)
		})
		return work{ops: n, bytes: totalSize(blobs)}, err
	}), nil
}

// pushed pushes new blobs of the given sizes.
func (st *stage) pushed(ctx context.Context, r repository, sizes []int64) ([]blob, error) {
	blobs := st.content.fresh(sizes...)
	return blobs, st.spread(ctx, len(blobs), st.opts.Workers, func(ctx context.Context, s *session, i int) error {
		return r.push(ctx, s, blobs[i])
	})
}

// always is prepare for a workload whose rounds need nothing new.
func always(t timed) prepare {
	return func(context.Context, int) (timed, error) { return t, nil }
}

func rangeGet(ctx context.Context, st *stage) (prepare, error) {
	r := st.repository("range")
	blobs, err := st.pushed(ctx, r, repeat(st.opts.PartSize, 1))
	if err != nil {
		return nil, err
	}
	n := int64(st.opts.Range)
	return always(func(ctx context.Context, span time.Duration) (work, error) {
		w, err := st.count(ctx, span, st.opts.Workers, func(ctx context.Context, s *session, _ int) error {
			return r.pullRange(ctx, s, blobs[0], rand.Int64N(blobs[0].size-n+1), n)
		})
		w.bytes = int64(w.ops) * n
		return w, err
	}), nil
}

func blobHead(ctx context.Context, st *stage) (prepare, error) {
	r := st.repository("head")
	blobs, err := st.pushed(ctx, r, repeat(st.opts.LayerSize, 1))
	if err != nil {
		return nil, err
	}
	return always(func(ctx context.Context, span time.Duration) (work, error) {
		return st.count(ctx, span, st.opts.Workers, func(ctx context.Context, s *session, _ int) error {
			return r.headBlob(ctx, s, blobs[0].digest, http.StatusOK)
		})
	}), nil
}
