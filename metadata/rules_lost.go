package metadata

import (
	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// A digest is lost when no member holds its bytes any more. Its links and
// manifests stay, but count for nothing until somebody pushes the bytes again,
// or they turn up.

// lost marks a digest, or takes the mark away. The mark is refused where the
// bytes were placed after those who looked for them began, and where nobody
// wants them.
func (t *tx) lost(op *wire.Lost) (decision, error) {
	d, ok := parseSum(op.Digest)
	if !ok {
		return decision{verdict: badDigest}, nil
	}
	if op.Found {
		return decision{}, t.found(d)
	}
	used, wanted, err := t.lastUse(d)
	switch {
	case err != nil:
		return decision{}, err
	case !wanted:
		return decision{verdict: noBlob}, nil
	case used >= op.Since:
		return decision{verdict: usedSince}, nil
	}
	already, err := isLost(t.b, d)
	if already || err != nil {
		return decision{}, err
	}
	return decision{}, t.b.Set(lostKey(d), encodeTime(t.at.now), nil)
}

// lastUse returns when a link on d was used last, or a manifest put whose body
// d is. Wanted says that there is any: some node must hold the bytes.
func (t *tx) lastUse(d sum) (used int64, wanted bool, err error) {
	err = scan(t.b, linkedIn(d, ""), func(repo, _ []byte) (bool, error) {
		l, ok, err := t.getLink(string(repo), d)
		used, wanted = max(used, l.used), wanted || ok
		return true, err
	})
	if err != nil {
		return 0, false, err
	}
	err = scan(t.b, placedIn(d, ""), func(_, v []byte) (bool, error) {
		l, err := decodeLink(v)
		used, wanted = max(used, l.used), true
		return true, err
	})
	return used, wanted, err
}

func isLost(r pebble.Reader, d sum) (bool, error) { return get(r, lostKey(d), nil) }

// found takes the mark from a digest whose bytes are there.
func (t *tx) found(d sum) error {
	lost, err := isLost(t.b, d)
	if !lost || err != nil {
		return err
	}
	return t.delete(lostKey(d))
}

// unwanted takes the mark from a digest whose bytes nobody wants any more,
// after a link or manifest went: a mark must not outlive them.
func (t *tx) unwanted(d sum) error {
	lost, err := isLost(t.b, d)
	if !lost || err != nil {
		return err
	}
	for _, prefix := range [][]byte{linkedIn(d, ""), placedIn(d, "")} {
		wanted, err := hasPrefix(t.b, prefix)
		if wanted || err != nil {
			return err
		}
	}
	return t.delete(lostKey(d))
}
