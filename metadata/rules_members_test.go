package metadata

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

func out(id string, v bool) *wire.Standing     { return &wire.Standing{Id: id, Out: &v} }
func gone(id string) *wire.Member              { return &wire.Member{Id: id, Removed: true} }
func drained(id string, v bool) *wire.Standing { return &wire.Standing{Id: id, Draining: &v} }

// TestMemberRules has a row for each rule about who owns blobs and who outlives
// a recovery: what is done, and what of it stays.
func TestMemberRules(t *testing.T) {
	three := []any{founded(joined("1", "n", "k"), false), joined("2", "m", "l"), joined("3", "o", "m")}
	idle := joined("4", "p", "n")
	idle.Weight = 0
	moved := joined("2", "m", "l")
	moved.Address = "h:2"
	r := newReplica(t)
	for _, row := range []struct {
		name string
		ops  []any
		says string // of the last; "" is done
		want string // members: o is out, d draining; then the epoch
	}{
		{"out", []any{out("2", true)}, "", "1 2o 3 epoch 3"},
		{"out and in", []any{out("2", true), out("2", false)}, "", "1 2 3 epoch 3"},
		{"draining", []any{drained("2", true)}, "", "1 2d 3 epoch 3"},
		{"out while draining", []any{drained("2", true), out("2", true)}, "", "1 2od 3 epoch 3"},
		{"in again, draining still", []any{drained("2", true), out("2", true), out("2", false)}, "", "1 2d 3 epoch 3"},
		{"an announcement changes neither", []any{drained("2", true), out("2", true), moved}, "", "1 2od 3 epoch 3"},
		{"a stranger", []any{out("9", true)}, "no member", "1 2 3 epoch 3"},
		{"no id", []any{out("", true)}, "malformed", "1 2 3 epoch 3"},
		{"the buried", []any{&wire.Member{Id: "2", Removed: true}, out("2", true)}, "no member", "1 3 epoch 3"},
		{"the last owner", []any{out("1", true), drained("2", true), drained("3", true)}, "no other member", "1o 2d 3 epoch 3"},
		{"the last owner beside one that owns nothing", []any{idle, out("1", true), drained("2", true), out("3", true)}, "no other member", "1o 2d 3 4 epoch 3"},
		{"the last owner again", []any{drained("1", true), drained("2", true), out("3", false)}, "", "1d 2d 3 epoch 3"},
		{"the last owner dies beside one that drains", []any{drained("2", true), out("3", true), gone("1")}, "take that back", "1 2d 3o epoch 3"},
		{"and beside one that is out and drains", []any{drained("2", true), out("2", true), gone("3"), gone("1")}, "take that back", "1 2od epoch 3"},
		{"and that is taken back", []any{drained("2", true), out("3", true), drained("2", false), gone("1")}, "", "2 3o epoch 3"},
		{"the last owner dies beside those that are out", []any{out("2", true), out("3", true), gone("1")}, "", "2o 3o epoch 3"},
		{"the last owner dies beside one of no weight", []any{idle, gone("2"), gone("3"), gone("1")}, "", "4 epoch 3"},
		{"who drains leaves", []any{drained("2", true), gone("2")}, "", "1 3 epoch 3"},
		{"recovery", []any{&wire.Recover{Epoch: 4, Keep: []string{"2"}}}, "", "2 epoch 4"},
		{"recovery keeps standing", []any{drained("2", true), &wire.Recover{Epoch: 4, Keep: []string{"1", "2"}}}, "", "1 2d epoch 4"},
		{"recovery of the same epoch", []any{&wire.Recover{Epoch: 3, Keep: []string{"2"}}}, "came first", "1 2 3 epoch 3"},
		{"recovery twice", []any{&wire.Recover{Epoch: 4, Keep: []string{"2"}}, &wire.Recover{Epoch: 4, Keep: []string{"2"}}}, "came first", "2 epoch 4"},
		{"recovery of an epoch of its own", []any{&wire.Recover{Epoch: 1<<32 | 7, Keep: []string{"2"}}}, "", "2 epoch 2-00000007"},
		{"recovery to the past", []any{&wire.Recover{Epoch: 2, Keep: []string{"2"}}}, "came first", "1 2 3 epoch 3"},
		{"recovery of a stranger", []any{&wire.Recover{Epoch: 4, Keep: []string{"2", "9"}}}, "no member", "1 2 3 epoch 3"},
		{"recovery of nobody", []any{&wire.Recover{Epoch: 4}}, "no member", "1 2 3 epoch 3"},
		{"the buried of a recovery return", []any{&wire.Recover{Epoch: 4, Keep: []string{"2"}}, joined("1", "n", "k")}, "was removed", "2 epoch 4"},
		{"their names are free", []any{&wire.Recover{Epoch: 4, Keep: []string{"2"}}, joined("5", "n", "k")}, "", "2 5 epoch 4"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.wipe()
			for _, op := range append(three[:3:3], row.ops[:len(row.ops)-1]...) {
				r.must(command(0, op))
			}
			got := r.do(command(0, row.ops[len(row.ops)-1]))[0].err
			if (got == nil) != (row.says == "") || got != nil && !strings.Contains(got.Error(), row.says) {
				t.Errorf("got %v, want %q", got, row.says)
			}
			if got := membersOf(r); got != row.want {
				t.Errorf("members %q, want %q", got, row.want)
			}
			before := r.sum()
			r.restart()
			if r.sum() != before || membersOf(r) != row.want {
				t.Errorf("after a restart: %q", membersOf(r))
			}
		})
	}
}

func membersOf(r *replica) string {
	var b strings.Builder
	for _, m := range r.members() {
		b.WriteString(m.ID)
		if m.Out {
			b.WriteString("o")
		}
		if m.Draining {
			b.WriteString("d")
		}
		b.WriteString(" ")
	}
	return b.String() + fmt.Sprint("epoch ", r.cluster().Epoch)
}

// A recovery of a node that belongs to no mesh has nothing to begin with.
func TestRecoverNothing(t *testing.T) {
	r := newReplica(t)
	if err := r.do(command(0, &wire.Recover{Epoch: 1, Keep: []string{"1"}}))[0].err; err == nil {
		t.Error("an epoch of no mesh began")
	}
}

func TestNextStanding(t *testing.T) {
	for _, tc := range []struct {
		name     string
		members  string // the letter is the zone; then o out, d draining, =n its weight
		gone     string
		replicas int
		want     string // -id puts out, +id takes in
	}{
		{"all is well", "a1 a2 a3 a4", "", 3, ""},
		{"one of four is gone", "a1 a2 a3 a4", "a2", 3, "-a2"},
		{"one of three: too few would stay", "a1 a2 a3", "a2", 3, ""},
		{"one of three, two copies", "a1 a2 a3", "a2", 2, "-a2"},
		{"two of five: one at a time", "a1 a2 a3 a4 a5", "a2 a4", 3, "-a2"},
		{"and then the other", "a1 a2o a3 a4 a5", "a2 a4", 3, "-a4"},
		{"and not a third", "a1 a2o a3 a4o a5", "a2 a4 a5", 3, ""},
		{"it is back", "a1 a2o a3 a4", "", 3, "+a2"},
		{"one is back, another gone: in first", "a1 a2o a3 a4 a5", "a4", 3, "+a2"},
		{"half of the weight", "a1 a2 a3=2", "a3", 1, ""},
		{"less than half of it", "a1=2 a2 a3=2", "a3", 1, "-a3"},
		{"those that are out count in the whole", "a1=2 a2 a3=2 a4=2o", "a3 a4", 1, ""},
		{"who drains counts nowhere", "a1 a2 a3=9d a4", "a4", 1, "-a4"},
		{"who drains is not put out", "a1 a2 a3 a4d a5", "a4", 3, ""},
		{"who drains is taken in", "a1 a2 a3 a4od", "", 3, "+a4"},
		{"who owns nothing, for what its zone pins", "a1 a2 a3 a4=0", "a4", 3, "-a4"},
		{"who owns nothing and is alone", "a1 a2 a3 b1=0", "b1", 3, ""},
		{"who owns nothing, in a zone that is cut off", "a1 a2 a3 b1=0 b2=0", "b1 b2", 3, ""},
		{"who owns nothing is out already", "a1 a2 a3 a4=0o", "a4", 3, ""},
		{"who owns nothing beside one that leaves", "a1 a2 a3 b1=0 b2=0d", "b1", 3, ""},
		{"who owns nothing is back", "a1 a2 a3 a4=0o", "", 3, "+a4"},
		{"who owns nothing does not stay", "a1 a2 a3 a4=0", "a3", 3, ""},
		{"a zone of two loses one", "a1 a2 a3 b1 b2", "b1 b2", 3, "-b1"},
		{"and keeps the other", "a1 a2 a3 b1o b2", "b1 b2", 3, ""},
		{"a zone of one", "a1 a2 a3 b1", "b1", 3, "-b1"},
		{"the mesh of one", "a1", "a1", 1, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			gone := set(tc.gone)
			is := func(id string) bool { return gone[id] }
			id, out, ok := nextStanding(owners(tc.members), func(id string) bool { return !gone[id] }, is, tc.replicas)
			got := map[bool]string{true: "-", false: "+"}[out] + id
			if !ok {
				got = ""
			}
			if got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// owners makes the members of TestNextStanding.
func owners(ids string) []Member {
	var ms []Member
	for _, f := range strings.Fields(ids) {
		m := Member{ID: f[:2], Zone: f[:1], Weight: 1}
		rest := f[2:]
		if strings.HasPrefix(rest, "=") {
			m.Weight, rest = uint32(rest[1]-'0'), rest[2:]
		}
		m.Out, m.Draining = strings.Contains(rest, "o"), strings.Contains(rest, "d")
		ms = append(ms, m)
	}
	return ms
}
