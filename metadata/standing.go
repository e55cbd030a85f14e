package metadata

import (
	"context"
	"slices"
	"time"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// Who owns blobs. A member that stays away is put out of the ring by the
// leader, so that others take over its copies, and comes back in when it is
// there again. One that is to leave is drained first: it owns nothing from then
// on, but others still fetch from it what it holds.

// Drain makes a member own no blobs, so that all it holds moves to others, or
// takes that back. ErrDenied where there is no such member, or nobody else
// would own any.
func (c *Catalog) Drain(ctx context.Context, id string, on bool) error {
	_, err := c.write(ctx, standingOp(&wire.Standing{Id: id, Draining: &on}))
	return wrapWrite("drain member", err)
}

func standingOp(op *wire.Standing) *wire.Command {
	return &wire.Command{Version: 1, Op: &wire.Command_Standing{Standing: op}}
}

// nextStanding returns the one member that is to be put out of the ring, or
// taken in again. back and gone say who has lastingly been alive, or away.
//
// Moving its blobs is meant for one machine that will not return, not for a
// line that is cut. So enough owners stay for the copies that a blob needs, and
// with them more than half of what all could hold; and of a zone of two or more
// one stays, even if none of them is there. Who owns nothing by its weight may
// have to hold what its zone pins: it is put out where another of the zone is
// there to do so.
func nextStanding(members []Member, back, gone func(id string) bool, replicas int) (id string, out, ok bool) {
	owners, weight, whole := 0, uint64(0), uint64(0)
	zone, zoneOwners := make(map[string]int), make(map[string]int)
	for _, m := range members {
		if m.Out && back(m.ID) {
			return m.ID, false, true
		}
		if m.Draining || m.Weight == 0 {
			continue
		}
		whole += uint64(m.Weight)
		zone[m.Zone]++
		if m.owns() {
			owners++
			weight += uint64(m.Weight)
			zoneOwners[m.Zone]++
		}
	}
	for _, m := range members {
		switch {
		case m.Weight == 0 && !m.Out && !m.Draining && gone(m.ID) && slices.ContainsFunc(members, func(o Member) bool {
			return o.Zone == m.Zone && !o.Draining && !gone(o.ID) && back(o.ID)
		}):
			return m.ID, true, true
		case !m.owns() || !gone(m.ID):
		case owners <= replicas:
		case 2*(weight-uint64(m.Weight)) <= whole:
		case zone[m.Zone] > 1 && zoneOwners[m.Zone] == 1:
		default:
			return m.ID, true, true
		}
	}
	return "", false, false
}

// tendStanding makes at most one change to who owns blobs. What it knows of
// absences began when this node was elected.
func (c *Catalog) tendStanding(ctx context.Context, t *tending, members []Member, now time.Time) (changed bool, err error) {
	back := func(id string) bool { return t.lasted(id, true, now, c.cfg.Timing.Stable) }
	gone := func(id string) bool { return t.lasted(id, false, now, c.cfg.OutAfter) }
	id, out, ok := nextStanding(members, back, gone, c.state.cluster().Replicas)
	if !ok {
		return false, nil
	}
	cmd := standingOp(&wire.Standing{Id: id, Out: &out})
	if c.state.level() < needs(cmd) {
		return false, nil
	}
	what := "take into the ring"
	if out {
		what = "put out of the ring"
	}
	at := slices.IndexFunc(members, func(m Member) bool { return m.ID == id }) // it is one of them
	c.log.Info(what, "member", id, "name", members[at].Name, "zone", members[at].Zone)
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	done, err := c.proposeHere(ctx, cmd)
	if err == nil {
		err = done.err()
	}
	return true, wrapWrite(what, err)
}
