package metadata

import (
	"bytes"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2"
)

// rewriter makes of a backup the stream of a state that has its names and
// settings, and the identity and members of the mesh that own is the state of.
// What became of requests in the other mesh is nothing to this one.
//
// A backup without settings leaves the mesh its own: to lose them is to lose who
// may do what, and that must not come of restoring names.
type rewriter struct {
	framer
	backup *decoder // nil at its end
	index  uint64   // of the new state: its settings count as written then
	own    []pair   // the mesh's settings, until it shows who has any
}

type pair struct{ key, value []byte }

func newRewriter(backup io.Reader, own pebble.Reader, at progress) (*rewriter, error) {
	d, err := newDecoder(backup)
	if err != nil {
		return nil, err
	}
	k, v, err := d.next()
	if err == nil && k[0] != keyProgress {
		err = fmt.Errorf("%w: it says no time", errStream)
	}
	if err != nil {
		return nil, err
	}
	was, err := decodeProgress(v)
	if err != nil {
		return nil, err
	}
	at.now = was.now
	r := &rewriter{backup: d, index: at.index}
	return r, r.head(own, at)
}

// head lays out what comes before the names. Log time does not go back, in
// which mesh ever: the ages of names are counted in it.
func (r *rewriter) head(own pebble.Reader, at progress) error {
	h, err := readHeader(own)
	if err != nil {
		return err
	}
	h.index, h.term = at.index, at.term
	r.begin(h)
	_, err = get(own, []byte{keyProgress}, func(v []byte) error {
		here, err := decodeProgress(v)
		at.now = max(at.now, here.now)
		return err
	})
	if err != nil {
		return err
	}
	r.record([]byte{keyProgress}, at.encode())
	for _, prefix := range []byte{keyCluster, keyMember} {
		err := scan(own, []byte{prefix}, func(rest, v []byte) (bool, error) {
			r.record(append([]byte{prefix}, rest...), v)
			return true, nil
		})
		if err != nil {
			return err
		}
	}
	return scan(own, []byte{keySetting}, func(rest, v []byte) (bool, error) {
		r.own = append(r.own, pair{settingKey(string(rest)), bytes.Clone(v)})
		return true, nil
	})
}

// setting lays out a setting of the backup. Its revision was an index of the
// other mesh's log, and could by chance be one that was read in this mesh.
func (r *rewriter) setting(key, value []byte) error {
	s, err := decodeSetting(value)
	if err != nil {
		return err
	}
	r.own = nil
	s.revision = r.index
	r.record(key, s.encode())
	return nil
}

// keepOwn lays out the mesh's own settings once the backup has come past where
// it would have some.
func (r *rewriter) keepOwn() {
	for _, p := range r.own {
		r.record(p.key, p.value)
	}
	r.own = nil
}

// Read implements io.Reader.
func (r *rewriter) Read(p []byte) (int, error) {
	for r.backup != nil && !r.full() {
		k, v, err := r.backup.next()
		switch {
		case err == io.EOF:
			r.keepOwn()
			r.finish()
			r.backup = nil
		case err != nil:
			return 0, err
		case k[0] == keySetting:
			if err := r.setting(k, v); err != nil {
				return 0, err
			}
		case k[0] == keyRepo || k[0] == keyBytes:
			r.keepOwn()
			r.record(k, v)
		}
	}
	if r.out.Len() == 0 {
		return 0, io.EOF
	}
	return r.out.Read(p)
}
