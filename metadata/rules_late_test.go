package metadata

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// TestLateNames has a row for each name that may come too late. All that comes
// before it, and the name, happen at minute 0.
func TestLateNames(t *testing.T) {
	const before = levelNamedBy - 1
	link := func(by int) any { return namedIn(minute(by), pushed("a", "blob")) }
	body := func(by int) any {
		m := placed(imageOf("a", "m", []string{"v1"}))
		m.NamedBy = minute(by)
		return m
	}
	higher := joined("1", "n1", "k1")
	higher.Level = levelNamedBy
	other := joined("2", "n2", "k2")
	other.Level = levelNamedBy
	r := newReplica(t)
	for _, row := range []struct {
		name   string
		before []any
		op     any
		want   *oci.Error
		size   int64
	}{
		{"a link in time", []any{levelled(levelNamedBy)}, link(1), nil, 4},
		{"a link in the last moment", []any{levelled(levelNamedBy)}, link(0), nil, 4},
		{"a link too late", []any{levelled(levelNamedBy)}, link(-1), oci.ErrOverdue, 0},
		{"a link too late, long before Unix time", []any{levelled(levelNamedBy)}, namedIn(-1, pushed("a", "blob")), oci.ErrOverdue, 0},
		{"a link at any time", []any{levelled(levelNamedBy)}, pushed("a", "blob"), nil, 4},
		{"a link too late, of a blob that is linked", []any{levelled(levelNamedBy), pushed("a", "blob")}, link(-1), oci.ErrOverdue, 0},
		{"a link too late, of a blob that is lost", []any{levelled(levelNamedBy), pushed("a", "blob"), lost("blob", 1)}, link(-1), oci.ErrOverdue, 0},
		{"a mount", []any{levelled(levelNamedBy), pushed("a", "blob")}, mounted("b", "blob", "a"), nil, 4},
		{"a body in time", []any{levelled(levelNamedBy)}, body(0), nil, 0},
		{"a body too late", []any{levelled(levelNamedBy)}, body(-1), oci.ErrOverdue, 0},
		{"a body in its entry", []any{levelled(levelNamedBy)}, imageOf("a", "m", nil), nil, 0},
		{"a link too late, before the level", []any{levelled(before)}, link(-1), nil, 4},
		{"a body too late, before the level", []any{levelled(before)}, body(-1), nil, 0},
		{"a link too late, while one member has not the level", []any{levelled(before), other}, link(-1), nil, 4},
		{"a link too late, once the last member has the level", []any{levelled(before), other, higher}, link(-1), oci.ErrOverdue, 0},
	} {
		t.Run(row.name, func(t *testing.T) { r.check(t, row.before, row.op, row.want, row.size) })
	}
}

// TestLateRetry: a request that came too late stays refused, however often it is
// repeated; another, for bytes that were placed anew, goes through.
func TestLateRetry(t *testing.T) {
	r := newReplica(t)
	r.must(command(0, levelled(levelNamedBy)))
	late := command(5, namedIn(minute(4), pushed("a", "blob")))
	late.RequestId = "late"
	first := r.do(late)[0]
	sameError(t, "first", first.err, oci.ErrOverdue)
	late.Now = minute(3) // by a leader whose clock is behind
	sameError(t, "again", r.do(late)[0].err, oci.ErrOverdue)
	if got := r.logTime.Load(); got != minute(5) {
		t.Errorf("log time is %d minutes", (got-epoch)/6e10)
	}
	anew := command(5, namedIn(minute(6), pushed("a", "blob")))
	anew.RequestId = "anew"
	sameError(t, "anew", r.do(anew)[0].err, nil)
	sameError(t, "the first once more", r.do(late)[0].err, oci.ErrOverdue)
	if b, ok, err := r.blob("a", digest.FromString("blob")); !ok || err != nil || b.Size != 4 {
		t.Errorf("%+v %v %v", b, ok, err)
	}
}

// TestLevelThree: while a member of level 3 remains, the state is what it makes
// of the log, though it knows nothing of names that come too late.
func TestLevelThree(t *testing.T) {
	newer := joined("2", "two", "k2")
	newer.Level = FeatureLevel
	sum := func(by int64) string {
		r := newReplica(t)
		large := placed(imageOf("a", "large", []string{"v1"}, "blob"))
		large.NamedBy = by
		link := command(1, namedIn(by, pushed("a", "blob")))
		link.RequestId = "link"
		r.must(command(0, levelled(3)), command(0, newer), link, command(2, large), command(3, &wire.Untag{Repo: "a", Tag: "v1"}))
		return r.sum()
	}
	if sum(minute(-1)) != sum(0) {
		t.Error("members of level 3 and of level 4 made different states of one log")
	}
}
