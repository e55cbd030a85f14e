package metadata

import (
	"bytes"
	"errors"
	"strings"

	"github.com/cockroachdb/pebble/v2"
)

// repoEntry is a key of a repository whose rest is a digest, with its value.
// Key and value are its holder's only until the next one.
type repoEntry struct {
	key   []byte
	repo  string
	kind  byte
	d     sum
	value []byte
}

// walkRepos calls fn with the entries of some kinds, which are given in their
// order and whose keys end with a digest, of all repositories, from the key
// from on, until fn returns false. What lies between is passed over by seeks.
func walkRepos(r pebble.Reader, from []byte, kinds string, fn func(repoEntry) (bool, error)) error {
	it, err := newIter(r, []byte{keyRepo})
	if err != nil {
		return err
	}
	var e repoEntry
	for ok := it.SeekGE(from); ok; {
		e.key = it.Key()
		repo, rest, found := bytes.Cut(e.key[1:], []byte{0})
		if !found || len(rest) == 0 {
			err = errRecord
			break
		}
		if e.repo != string(repo) {
			e.repo = string(repo)
		}
		if e.kind = rest[0]; strings.IndexByte(kinds, e.kind) < 0 {
			ok = it.SeekGE(nextKind(e.repo, e.kind, kinds))
			continue
		}
		e.d = sum(rest[1:])
		e.value, err = it.ValueAndErr()
		if err == nil && (len(e.d) == 0 || sumLen(rest[1:]) != len(e.d)) {
			err = errRecord
		}
		more := false
		if err == nil {
			more, err = fn(e)
		}
		if !more || err != nil {
			break
		}
		ok = it.Next()
	}
	return errors.Join(err, it.Close())
}

// nextKind is where the first of kinds after kind begins, in repo or the next.
func nextKind(repo string, kind byte, kinds string) []byte {
	for _, k := range []byte(kinds) {
		if k > kind {
			return repoKey(repo, k)
		}
	}
	return after(repoPrefix(repo))
}
