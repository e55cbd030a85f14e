package metadata

import (
	"crypto/ed25519"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// The rules of Apply, one operation each. A rule looks first and writes after
// it has decided.

// link makes a blob part of a repository, or marks its link used.
func (t *tx) link(op *wire.Link) (decision, error) {
	if !validName(op.Repo, maxRepo) || op.Mount && op.From != "" && !validName(op.From, maxRepo) {
		return decision{verdict: badName}, nil
	}
	d, ok := parseSum(op.Digest)
	if !ok {
		return decision{verdict: badDigest}, nil
	}
	if op.Size < 0 {
		return decision{verdict: badSize}, nil
	}
	if t.late(op.NamedBy) {
		return decision{verdict: namedLate}, nil
	}
	from := ""
	if op.Mount {
		from = op.From
	}
	size, known, err := t.linkedSize(d, op.Repo, from)
	if err != nil {
		return decision{}, err
	}
	if op.Mount {
		// Of a lost blob there is nothing to mount: the client then uploads it.
		lost, err := isLost(t.b, d)
		if err != nil {
			return decision{}, err
		}
		if !known || lost {
			return decision{verdict: noBlob}, nil
		}
	}
	if !known {
		size = op.Size
	}
	if err := t.setLink(op.Repo, d, link{size: size, used: t.at.now}); err != nil {
		return decision{}, err
	}
	if !op.Mount { // its bytes were placed just now
		if err := t.found(d); err != nil {
			return decision{}, err
		}
	}
	return decision{size: size}, t.b.Set(linkedIn(d, op.Repo), nil, nil)
}

// late reports whether log time has passed the latest at which bytes that were
// placed may be named: who holds them may have dropped them since.
func (t *tx) late(namedBy int64) bool {
	return t.level >= levelNamedBy && namedBy != 0 && t.at.now > namedBy
}

// linkedSize returns the size that a link on d must have. A digest has one
// size, so the first link anywhere decides it for all. With from given, a link
// there is what counts.
func (t *tx) linkedSize(d sum, repo, from string) (size int64, known bool, err error) {
	if from != "" {
		repo = from
	}
	l, known, err := t.getLink(repo, d)
	if known || err != nil || from != "" {
		return l.size, known, err
	}
	prefix := linkedIn(d, "")
	err = scan(t.b, prefix, func(other, _ []byte) (bool, error) {
		repo, known = string(other), true
		return false, nil
	})
	if err != nil || !known {
		return 0, false, err
	}
	l, known, err = t.getLink(repo, d)
	return l.size, known, err
}

func (t *tx) getLink(repo string, d sum) (l link, ok bool, err error) {
	ok, err = get(t.b, repoKey(repo, kindLink, string(d)), func(v []byte) (err error) {
		l, err = decodeLink(v)
		return err
	})
	return l, ok, err
}

func (t *tx) setLink(repo string, d sum, l link) error {
	return t.b.Set(repoKey(repo, kindLink, string(d)), l.encode(), nil)
}

// unlink drops a blob from a repository, and from it alone, even where
// manifests there need it: the client asked for that.
func (t *tx) unlink(op *wire.Unlink) (decision, error) {
	d, ok := parseSum(op.Digest)
	if !ok {
		return decision{verdict: badDigest}, nil
	}
	if !validName(op.Repo, maxRepo) {
		return decision{verdict: badName}, nil
	}
	_, ok, err := t.getLink(op.Repo, d)
	if err != nil {
		return decision{}, err
	}
	if !ok {
		return decision{verdict: noBlob}, nil
	}
	return decision{}, t.dropLink(op.Repo, d)
}

func (t *tx) dropLink(repo string, d sum) error {
	if err := t.delete(repoKey(repo, kindLink, string(d)), linkedIn(d, repo)); err != nil {
		return err
	}
	return t.unwanted(d)
}

func (t *tx) delete(keys ...[]byte) error {
	for _, k := range keys {
		if err := t.b.Delete(k, nil); err != nil {
			return err
		}
	}
	return nil
}

// member enters a node, updates it or buries it, and founds the mesh.
func (t *tx) member(op *wire.Member) (decision, error) {
	if !validName(op.Id, maxID) || op.Name == "" && !op.Removed || op.Removed && op.Cluster != nil {
		return decision{verdict: badRequest}, nil
	}
	// Level 0 would be taken for nobody being a member: see state.level.
	if !op.Removed && (op.Level == 0 || len(op.Key) != ed25519.PublicKeySize) {
		return decision{verdict: badRequest}, nil
	}
	if !op.Removed && op.Level < t.level {
		return decision{verdict: levelTooLow}, nil
	}
	was, v, err := t.checkMember(op)
	if v != done || err != nil {
		return decision{verdict: v}, err
	}
	if c := op.Cluster; c != nil {
		if t.cluster.ID != "" {
			return decision{verdict: alreadyFounded}, nil
		}
		if c.Id == "" || c.Replicas < 1 {
			return decision{verdict: badRequest}, nil
		}
		t.cluster = Cluster{ID: c.Id, Epoch: Epoch(c.Epoch), Replicas: int(c.Replicas), AllowSparse: c.AllowSparse}
		if err := t.b.Set([]byte{keyCluster}, encodeCluster(t.cluster), nil); err != nil {
			return decision{}, err
		}
	}
	if op.Removed {
		if v, err := t.mayGo(op.Id); v != done || err != nil {
			return decision{verdict: v}, err
		}
	}
	t.membersChanged = true
	m := memberRecord{buried: op.Removed}
	if !op.Removed {
		m.Member = Member{
			Name: op.Name, Key: op.Key, Zone: op.Zone,
			Weight: op.Weight, Level: op.Level, Address: op.Address,
			Out: was.Out, Draining: was.Draining,
		}
	}
	return decision{}, t.b.Set(memberKey(op.Id), m.encode(), nil)
}

// checkMember holds op against the members there are: an id belongs to one key
// for ever, a name to one member at a time. It returns what is known of the
// member so far.
func (t *tx) checkMember(op *wire.Member) (was Member, v verdict, err error) {
	err = scan(t.b, []byte{keyMember}, func(id, value []byte) (bool, error) {
		m, err := decodeMember(string(id), value)
		switch {
		case err != nil || op.Removed:
		case m.ID == op.Id && m.buried:
			v = idBuried
		case m.ID == op.Id && !m.Key.Equal(ed25519.PublicKey(op.Key)):
			v = keyDiffers
		case m.ID != op.Id && m.Name == op.Name: // graves have no name
			v = nameTaken
		case m.ID == op.Id:
			was = m.Member
		}
		return v == done, err
	})
	return was, v, err
}
