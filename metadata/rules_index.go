package metadata

import (
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// What level 2 keeps beside level 1: since when a manifest has no tag, and
// which digests are the bodies of manifests. A member of level 1 does not write
// these, so nobody does while there is one: all replicas then hold the same
// bytes still. The entry that raises the last member makes them complete, and
// since no lower level is taken in after that, they stay so.

// relevel follows a change of members.
func (t *tx) relevel() error {
	r, err := loadRoster(t.b)
	if err != nil {
		return err
	}
	was := t.level
	t.level = r.level()
	if was >= levelHealing || t.level < levelHealing {
		return nil
	}
	return walkRepos(t.b, nil, string(kindManifest), func(e repoEntry) (bool, error) {
		m, err := decodeManifest(e.value)
		if err != nil {
			return false, err
		}
		if !m.inline {
			if err := t.setPlaced(e.repo, e.d, m.size); err != nil {
				return false, err
			}
		}
		return true, t.indexUntag(e.repo, e.d)
	})
}

// indexPut enters a manifest that was put. Put again without a tag, its age
// counts anew: a push is under way that will name it.
func (t *tx) indexPut(op *wire.Manifest, d sum, m manifestRecord, known bool) error {
	if t.level < levelHealing {
		return nil
	}
	switch {
	case !m.inline:
		if err := t.setPlaced(op.Repo, d, m.size); err != nil {
			return err
		}
	case known: // perhaps its body was placed before
		if err := t.dropPlaced(op.Repo, d); err != nil {
			return err
		}
	}
	switch {
	case len(op.Tags) == 0:
		return t.indexUntag(op.Repo, d)
	case known:
		return t.delete(untaggedKey(op.Repo, d))
	}
	return nil
}

// indexUntag notes that a manifest has no tag from now on, if that is so.
func (t *tx) indexUntag(repo string, d sum) error {
	if t.level < levelHealing {
		return nil
	}
	tagged, err := hasPrefix(t.b, repoKey(repo, kindTagOf, string(d)))
	if tagged || err != nil {
		return err
	}
	return t.b.Set(untaggedKey(repo, d), encodeTime(t.at.now), nil)
}

// renewUntagged lets the age of a manifest without a tag count from since at
// the earliest.
func (t *tx) renewUntagged(repo string, d sum, since int64) error {
	was, untagged, err := untaggedSince(t.b, repo, d)
	if !untagged || err != nil || was >= since {
		return err
	}
	return t.b.Set(untaggedKey(repo, d), encodeTime(since), nil)
}

// indexDrop takes out a manifest that was dropped.
func (t *tx) indexDrop(repo string, d sum, old stored) error {
	if t.level < levelHealing {
		return nil
	}
	if !old.inline {
		if err := t.dropPlaced(repo, d); err != nil {
			return err
		}
	}
	return t.delete(untaggedKey(repo, d))
}

func (t *tx) setPlaced(repo string, d sum, size int64) error {
	return t.b.Set(placedIn(d, repo), link{size: size, used: t.at.now}.encode(), nil)
}

func (t *tx) dropPlaced(repo string, d sum) error {
	if err := t.delete(placedIn(d, repo)); err != nil {
		return err
	}
	return t.unwanted(d)
}
