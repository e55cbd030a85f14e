package metadata

import (
	"slices"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// standing changes whether a member owns blobs. Somebody always does: the last
// owner stays.
func (t *tx) standing(op *wire.Standing) (decision, error) {
	if !validName(op.Id, maxID) {
		return decision{verdict: badRequest}, nil
	}
	var m *Member
	others := false // own blobs
	err := t.eachMember(func(o Member) error {
		if o.ID == op.Id {
			m = &o
		} else if o.owns() {
			others = true
		}
		return nil
	})
	if err != nil {
		return decision{}, err
	}
	if m == nil {
		return decision{verdict: notMember}, nil
	}
	owned := m.owns()
	if op.Out != nil {
		m.Out = *op.Out
	}
	if op.Draining != nil {
		m.Draining = *op.Draining
	}
	if owned && !m.owns() && !others {
		return decision{verdict: lastOwner}, nil
	}
	t.membersChanged = true
	return decision{}, t.b.Set(memberKey(op.Id), memberRecord{Member: *m}.encode(), nil)
}

// mayGo refuses to bury the last owner while others would own but for being
// drained: they would hand over to nobody, and then leave with all there is.
// Taking one of them back first makes the burial possible. It is where nobody
// drains, since the last owner may be gone for good: members that are out come
// in when they are back, and those of no weight were never to own anything.
func (t *tx) mayGo(id string) (verdict, error) {
	owned, others, drains := false, false, false
	err := t.eachMember(func(m Member) error {
		switch {
		case m.ID == id:
			owned = m.owns()
		case m.owns():
			others = true
		case m.Draining && m.Weight > 0:
			drains = true
		}
		return nil
	})
	if owned && !others && drains {
		return othersDrain, err
	}
	return done, err
}

// owns reports whether blobs are placed on m.
func (m Member) owns() bool { return m.Weight > 0 && !m.Out && !m.Draining }

// recover begins a later epoch, which the proposer chose so that no other
// recovery has the same: whoever is not kept is buried.
func (t *tx) recover(op *wire.Recover) (decision, error) {
	if t.cluster.ID == "" || Epoch(op.Epoch) <= t.cluster.Epoch {
		return decision{verdict: notLaterEpoch}, nil
	}
	var buried []string
	kept := 0
	err := t.eachMember(func(m Member) error {
		if slices.Contains(op.Keep, m.ID) {
			kept++
		} else {
			buried = append(buried, m.ID)
		}
		return nil
	})
	if err != nil {
		return decision{}, err
	}
	if kept == 0 || kept != len(op.Keep) { // each once, and all of them members
		return decision{verdict: notMember}, nil
	}
	for _, id := range buried {
		if err := t.b.Set(memberKey(id), memberRecord{buried: true}.encode(), nil); err != nil {
			return decision{}, err
		}
	}
	t.cluster.Epoch = Epoch(op.Epoch)
	t.membersChanged = true
	return decision{}, t.b.Set([]byte{keyCluster}, encodeCluster(t.cluster), nil)
}

// eachMember calls fn with every member, by id; not with the buried.
func (t *tx) eachMember(fn func(Member) error) error {
	return scan(t.b, []byte{keyMember}, func(id, v []byte) (bool, error) {
		m, err := decodeMember(string(id), v)
		if err == nil && !m.buried {
			err = fn(m.Member)
		}
		return true, err
	})
}
