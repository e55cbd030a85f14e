package metadata

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// people makes members of "a1 a2 b1": the letter is the zone.
func people(ids string) []Member {
	var ms []Member
	for _, id := range strings.Fields(ids) {
		ms = append(ms, Member{ID: id, Zone: id[:1]})
	}
	return ms
}

func set(ids string) map[string]bool {
	s := make(map[string]bool)
	for _, id := range strings.Fields(ids) {
		s[id] = true
	}
	return s
}

func TestPickVoters(t *testing.T) {
	for _, tc := range []struct {
		name                  string
		members, gone, voters string // voters: the leader first
		want                  string
	}{
		{"a mesh of one", "a1", "", "a1", "a1"},
		{"of two: the founder alone", "a1 a2", "", "a1", "a1"},
		{"of two, and not the founder leads", "a1 a2", "", "a2", "a2"},
		{"of three", "a1 a2 a3", "", "a1", "a1 a2 a3"},
		{"of three, one never seen: not two", "a1 a2 a3", "a3", "a1", "a1"},
		{"of three, a voter gone: it stays", "a1 a2 a3", "a3", "a1 a2 a3", "a1 a2 a3"},
		{"of four, a voter gone: it is replaced", "a1 a2 a3 a4", "a3", "a1 a2 a3", "a1 a2 a4"},
		{"it comes back: those who vote stay", "a1 a2 a3 a4", "", "a1 a2 a4", "a1 a2 a4"},
		{"of four, two gone: one keeps its vote", "a1 a2 a3 a4", "a3 a4", "a1 a2 a3", "a1 a2 a3"},
		{"of six: three", "a1 a2 a3 a4 a5 a6", "", "a1 a2 a3", "a1 a2 a3"},
		{"of seven: five", "a1 a2 a3 a4 a5 a6 a7", "", "a1 a2 a3", "a1 a2 a3 a4 a5"},
		{"of seven, four there: not four", "a1 a2 a3 a4 a5 a6 a7", "a5 a6 a7", "a1 a2 a3", "a1 a2 a3"},
		{"of twenty: five", "a1 a2 a3 a4 a5 b1 b2 b3 b4 b5 c1 c2 c3 c4 c5 d1 d2 d3 d4 d5", "", "a1", "a1 a2 b1 c1 d1"},
		{"spread over zones", "a1 a2 a3 b1 c1", "", "a1", "a1 b1 c1"},
		{"spread although all vote in one zone", "a1 a2 a3 b1 c1", "", "a1 a2 a3", "a1 b1 c1"},
		{"two zones: who votes stays", "a1 a2 a3 b1 b2", "", "a2 a3 b2", "a2 a3 b2"},
		{"a zone is gone", "a1 a2 a3 b1 c1", "b1", "a1 b1 c1", "a1 a2 c1"},
		{"the leader is not known as gone", "a1 a2 a3", "a1", "a1 a2 a3", "a1 a2 a3"},
		{"nobody votes yet", "a1 a2 a3", "", "", "a1 a2 a3"},
		{"no members", "", "", "a1", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			alive := set(tc.members)
			for id := range set(tc.gone) {
				delete(alive, id)
			}
			got := pickVoters(people(tc.members), alive, strings.Fields(tc.voters))
			slices.Sort(got)
			if fmt.Sprint(got) != fmt.Sprint(strings.Fields(tc.want)) {
				t.Errorf("%v, want %s", got, tc.want)
			}
		})
	}
}

func TestNextStep(t *testing.T) {
	for _, tc := range []struct {
		name                        string
		voters, picked, gone, ready string
		want                        string // +id gives a vote, -id takes it
	}{
		{"all is well", "a b c", "a b c", "", "", ""},
		{"the first of a pair", "a", "a b c", "", "b c", "+b"},
		{"not without the second", "a", "a b c", "", "c", ""},
		{"the second of a pair", "a b", "a b c", "", "c", "+c"},
		{"the second is not ready", "a b", "a b c", "", "", ""},
		{"three to five", "a b c", "a b c d e", "", "d e", "+d"},
		{"a dead voter goes first", "a b c", "a b d", "c", "d", "-c"},
		{"but not before its successor is ready", "a b c", "a b d", "c", "", ""},
		{"then the successor comes", "a b", "a b d", "", "d", "+d"},
		{"a live voter goes last", "a b c", "a b d", "", "d", "+d"},
		{"once its successor votes", "a b c d", "a b d", "", "", "-c"},
		{"too many voters", "a b c", "a", "", "", "-c"},
		{"too many, one dead", "a b c", "a", "b", "", "-b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			alive := set(tc.voters + " " + tc.picked)
			for id := range set(tc.gone) {
				delete(alive, id)
			}
			ready := set(tc.ready)
			s, ok := nextStep(strings.Fields(tc.voters), strings.Fields(tc.picked), alive, func(id string) bool { return ready[id] })
			got := ""
			switch {
			case ok && s.vote:
				got = "+" + s.id
			case ok:
				got = "-" + s.id
			}
			if got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// From wherever it starts, nextStep arrives at what was picked, never takes the
// leader's vote, and has an even number of voters only in passing.
func TestStepsArrive(t *testing.T) {
	everyone := strings.Fields("a b c d e f g")
	for from := 1; from < 1<<len(everyone); from += 2 { // the leader, a, always votes
		for _, want := range []string{"a", "a b c", "a d g", "a b c d e", "a c e f g"} {
			var voters []string
			for i, id := range everyone {
				if from&(1<<i) != 0 {
					voters = append(voters, id)
				}
			}
			picked, even := strings.Fields(want), 0
			for range 20 {
				s, ok := nextStep(voters, picked, set("a b c d e f g"), func(string) bool { return true })
				if !ok {
					break
				}
				if s.vote {
					voters = append(voters, s.id)
				} else {
					voters = without(voters, []string{s.id})
				}
				if len(voters)%2 == 0 {
					even++
				} else {
					even = 0
				}
				if even > 1 || voters[0] != "a" {
					t.Fatalf("from %b to %s by %v", from, want, voters)
				}
			}
			slices.Sort(voters)
			if !slices.Equal(voters, picked) {
				t.Fatalf("from %b to %s: arrived at %v", from, want, voters)
			}
		}
	}
}

func TestTending(t *testing.T) {
	var now time.Time
	at := func(seconds int) time.Time { return now.Add(time.Duration(seconds) * time.Second) }
	look := func(d *tending, second int, alive string) string {
		steady := d.look(people("a1 a2 a3"), strings.Fields(alive), []string{"a1", "a2"}, at(second), 2*time.Second)
		var ids []string
		for id, ok := range steady {
			if ok {
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		return strings.Join(ids, " ")
	}
	t.Run("liveness counts once it lasts", func(t *testing.T) {
		now = time.Now()
		d := &tending{seen: make(map[string]sighting)}
		for _, s := range []struct {
			second      int
			alive, want string
		}{
			{0, "a1 a3", "a1 a2"}, // a2 votes, and was here until proven gone; a3 is a newcomer
			{1, "a1 a3", "a1 a2"},
			{2, "a1 a3", "a1 a3"},
			{3, "a1 a2", "a1 a3"}, // a2 is back, a3 gone, for how long?
			{4, "a1 a3", "a1 a3"}, // not for long
			{5, "a1 a2 a3", "a1 a3"},
			{6, "a1 a2 a3", "a1 a3"},
			{7, "a1 a2 a3", "a1 a2 a3"},
		} {
			if got := look(d, s.second, s.alive); got != s.want {
				t.Errorf("at %d s: %q, want %q", s.second, got, s.want)
			}
		}
	})
	t.Run("how long somebody has been there, or gone", func(t *testing.T) {
		now = time.Now()
		d := &tending{seen: make(map[string]sighting)}
		for _, s := range []struct {
			second     int
			alive      string
			back, gone string // for 2 s
		}{
			{0, "a1 a3", "", ""}, // a2 votes, which is no reason to take it for back
			{1, "a1 a3", "", ""},
			{2, "a1 a3", "a1 a3", "a2"},
			{3, "a1 a2", "a1", ""},
			{4, "a1", "a1", ""},
			{5, "a1", "a1", "a3"},
			{6, "a1 a3", "a1", "a2"},
		} {
			look(d, s.second, s.alive)
			var back, gone []string
			for _, id := range []string{"a1", "a2", "a3", "a4"} {
				if d.lasted(id, true, at(s.second), 2*time.Second) {
					back = append(back, id)
				}
				if d.lasted(id, false, at(s.second), 2*time.Second) {
					gone = append(gone, id)
				}
			}
			if strings.Join(back, " ") != s.back || strings.Join(gone, " ") != s.gone {
				t.Errorf("at %d s: back %v, gone %v, want %q, %q", s.second, back, gone, s.back, s.gone)
			}
		}
	})
	t.Run("an even number ends", func(t *testing.T) {
		now = time.Now()
		d := &tending{promoted: "b"}
		for _, s := range []struct {
			second int
			voters string
			want   string
		}{
			{0, "a b", ""}, {9, "a b", ""}, {10, "a b", "b"},
			{11, "a", ""}, {12, "a c", ""}, {21, "a c", ""}, {22, "a c", "c"},
			{23, "a c d e", "e"}, {24, "a b c d", "b"},
		} {
			step, _ := d.odd(strings.Fields(s.voters), at(s.second), 10*time.Second)
			if step.id != s.want || step.vote {
				t.Errorf("at %d s, %s: %+v, want %q", s.second, s.voters, step, s.want)
			}
		}
	})
}

// A mesh that grows one by one has the right voters at each size, and one that
// goes is replaced.
func TestVotersFollowMembers(t *testing.T) {
	if testing.Short() {
		t.Skip("seven nodes")
	}
	m := newMesh(t)
	for i, want := range []int{1, 1, 3, 3, 3, 3, 5} {
		m.add(string(rune('a' + i%3)))
		m.settle(want)
	}
	zones := make(map[string]int)
	leader := m.leader()
	for _, id := range leader.Status().Voters {
		zones[m.node(id).zone]++
	}
	if len(zones) != 3 {
		t.Errorf("voters by zone: %v", zones)
	}
	var gone *testNode
	for _, id := range leader.Status().Voters {
		if id != leader.id {
			gone = m.node(id)
		}
	}
	gone.stop()
	eventually(t, "another voter", func() error {
		s := leader.Status()
		if len(s.Voters) != 5 || contains(s.Voters, gone.id) {
			return fmt.Errorf("voters %v", s.Voters)
		}
		return nil
	})
	must(t, leader.push("r", "x", 1))
}

func TestInlineLimit(t *testing.T) {
	m := newMesh(t)
	n := m.add("a")
	if got := n.InlineLimit(); got != 256<<10 {
		t.Errorf("one zone: %d", got)
	}
	m.add("b")
	if got := n.InlineLimit(); got != 32<<10 {
		t.Errorf("two zones: %d", got)
	}
}
