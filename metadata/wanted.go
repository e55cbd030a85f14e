package metadata

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// What those who keep the bytes ask, and what they report.

// Want is a digest whose bytes some member must hold.
type Want struct {
	Digest digest.Digest
	Size   int64
	Lost   bool // recorded as lost: see RecordLost
}

// Sync returns once this replica is proven to hold all that was committed
// before the call; ErrUnavailable where that cannot be proven now.
func (c *Catalog) Sync(ctx context.Context) error {
	ctx, leave, err := c.tasks.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return wrapRead("what is committed", c.certain(ctx))
}

// SyncTime is Sync, and returns the log's time. That stands still while nothing
// is written: where it has fallen behind this node's clock by an hour, or rather
// by this part of Timing.LinkAge, it is set going by an entry that does nothing
// else.
func (c *Catalog) SyncTime(ctx context.Context) (time.Time, error) {
	if err := c.Sync(ctx); err != nil {
		return time.Time{}, err
	}
	behind := c.cfg.Now().Sub(c.LogTime())
	if behind > c.cfg.Timing.LinkAge/24 && c.state.level() >= levelHealing {
		if _, err := c.write(ctx, &wire.Command{Op: &wire.Command_Expire{Expire: &wire.Expire{}}}); err != nil {
			return time.Time{}, wrapWrite("set log time going", err)
		}
	}
	return c.LogTime(), nil
}

// LogTime returns the time that ages are counted in, as far as this replica
// has come. Who is about to place bytes takes it first, and says it when they
// are named.
func (c *Catalog) LogTime() time.Time { return time.Unix(0, c.state.logTime.Load()) }

// Wanted lists digests whose bytes some member must hold, as this replica knows
// it: those that a repository links, and bodies of manifests that are placed as
// blobs. It gives at most n, and no more than maxPage, in the order of keys
// (sha256 first), after the digest `after` or from the beginning where that is
// ""; none is the end. While a member of level 1 remains, bodies of manifests
// are not among them.
func (c *Catalog) Wanted(after digest.Digest, n int) ([]Want, error) {
	all, err := c.state.wanted(after, min(n, maxPage))
	return all, wrapRead("wanted blobs", err)
}

// Referenced reports for each digest whether any link or manifest in any
// repository names it, as this replica knows it.
func (c *Catalog) Referenced(ds []digest.Digest) ([]bool, error) {
	all, err := c.state.referenced(ds)
	return all, wrapRead("references", err)
}

// RecordLost has the mesh agree that no member holds d any more, so that it is
// unknown to clients and the next push heals it. It is refused where d was
// pushed, mounted or put at or after since, the log time when the search for it
// began: ErrDenied; and where nothing wants d: ErrBlobUnknown.
func (c *Catalog) RecordLost(ctx context.Context, d digest.Digest, since time.Time) error {
	op := &wire.Lost{Digest: d.String(), Since: since.UnixNano()}
	_, err := c.write(ctx, &wire.Command{Op: &wire.Command_Lost{Lost: op}})
	return wrapWrite("record lost blob", err)
}

// RecordFound takes back what RecordLost said, if it did.
func (c *Catalog) RecordFound(ctx context.Context, d digest.Digest) error {
	op := &wire.Lost{Digest: d.String(), Found: true}
	_, err := c.write(ctx, &wire.Command{Op: &wire.Command_Lost{Lost: op}})
	return wrapWrite("record found blob", err)
}

// wanted takes two seeks for each digest, however many keys it has.
func (s *state) wanted(last digest.Digest, n int) (all []Want, err error) {
	db, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer s.mu.RUnlock()
	at := db.NewSnapshot()
	defer at.Close()
	return wantedIn(at, last, n)
}

// wantedIn is wanted of a state that does not change meanwhile.
func wantedIn(at pebble.Reader, last digest.Digest, n int) (all []Want, err error) {
	from := []byte{keyBytes}
	if last != "" {
		d, ok := parseSum(string(last))
		if !ok {
			return nil, oci.ErrDigestInvalid
		}
		from = after(append(from, d...))
	}
	it, err := newIter(at, []byte{keyBytes})
	if err != nil {
		return nil, err
	}
	for ok := it.SeekGE(from); ok && len(all) < n && err == nil; {
		var w Want
		var is bool
		if w, is, ok, err = wantAt(at, it); is {
			all = append(all, w)
		}
	}
	return all, errors.Join(err, it.Close())
}

// wantAt looks at the digest whose first key it stands at, and moves on to the
// next: more says that there is one. Kinds come in the order 'l', 'm', 'p', 'x'.
func wantAt(r pebble.Reader, it *pebble.Iterator) (w Want, is, more bool, err error) {
	key := it.Key()
	end := 1 + sumLen(key[1:])
	if end == 1 || end == len(key) {
		return w, false, false, errRecord
	}
	d := sum(key[1:end])
	w.Digest = sumDigest([]byte(d))
	// at reports whether it stands at a key of the digest and this kind.
	at := func(kind byte) bool { return more && bytes.HasPrefix(it.Key(), bytesKey(d, kind, "")) }
	more = true
	if at(kindLink) {
		is, err = get(r, repoKey(string(key[end+1:]), kindLink, string(d)), func(v []byte) error {
			l, err := decodeLink(v)
			w.Size = l.size
			return err
		})
	}
	more = it.SeekGE(placedIn(d, ""))
	if at(kindPlaced) {
		v, unread := it.ValueAndErr()
		l, damaged := decodeLink(v)
		if err = cmp.Or(err, unread, damaged); err == nil {
			w.Size, is = l.size, true
		}
		more = it.SeekGE(lostKey(d))
	}
	if at(kindLost) {
		w.Lost = true
		more = it.Next()
	}
	return w, is, more, err
}

func (s *state) referenced(ds []digest.Digest) ([]bool, error) {
	db, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer s.mu.RUnlock()
	it, err := newIter(db, []byte{keyBytes})
	if err != nil {
		return nil, err
	}
	all := make([]bool, len(ds))
	for i, text := range ds {
		d, ok := parseSum(string(text))
		if !ok {
			return nil, errors.Join(oci.ErrDigestInvalid, it.Close())
		}
		// Whatever stands under a digest is, or stands beside, a link or a name.
		prefix := append([]byte{keyBytes}, d...)
		all[i] = it.SeekGE(prefix) && bytes.HasPrefix(it.Key(), prefix)
		if err := it.Error(); err != nil {
			return nil, errors.Join(err, it.Close())
		}
	}
	return all, it.Close()
}
