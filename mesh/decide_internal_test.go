package mesh

import "testing"

func TestDecide(t *testing.T) {
	for _, row := range []struct {
		name string
		facts
		want action
	}{
		{"garbage", facts{held: true, idle: true, sure: true}, drop},
		{"garbage at an owner", facts{held: true, owner: true, idle: true, sure: true}, drop},
		{"garbage, the catalogue may be behind", facts{held: true, idle: true}, keep},
		{"garbage used since", facts{held: true, sure: true}, keep},
		{"garbage used since, in the way", facts{held: true, sure: true, over: true, confirmed: true}, keep},
		{"idle but referenced", facts{held: true, naming: referenced, idle: true, sure: true}, keep},
		{"idle but wanted", facts{held: true, naming: wanted, idle: true, sure: true}, keep},
		{"idle but wanted by an owner", facts{held: true, owner: true, naming: wanted, idle: true, sure: true}, keep},

		{"surplus", facts{held: true, naming: wanted, over: true, confirmed: true, sure: true}, drop},
		{"surplus, referenced", facts{held: true, naming: referenced, over: true, confirmed: true, sure: true}, drop},
		{"surplus in nobody's way", facts{held: true, naming: wanted, confirmed: true, sure: true}, keep},
		{"surplus that an owner does not confirm", facts{held: true, naming: wanted, over: true, sure: true}, keep},
		{"surplus, the catalogue may be behind", facts{held: true, naming: wanted, over: true, confirmed: true}, keep},
		{"an owner's copy", facts{held: true, owner: true, naming: wanted, over: true, confirmed: true, sure: true}, keep},

		{"an owner lacks what only holders know", facts{held: true, naming: referenced, lacking: 1, leads: true}, send},
		{"the same, at an owner", facts{held: true, owner: true, naming: referenced, lacking: 2, leads: true}, send},
		{"the same, a better rank sends", facts{held: true, naming: referenced, lacking: 1}, keep},
		{"all owners have what only holders know", facts{held: true, naming: referenced, leads: true}, keep},
		{"an owner lacks what it will fetch", facts{held: true, owner: true, naming: wanted, lacking: 1, leads: true}, keep},

		{"an owner lacks it", facts{owner: true, naming: wanted, sources: 1}, fetch},
		{"an owner lacks it, the catalogue may be behind", facts{owner: true, naming: wanted, sources: 2, leads: true}, fetch},
		{"an owner lacks it, it is found again", facts{owner: true, naming: wanted, lost: true, sources: 1}, fetch},
		{"no owner lacks it", facts{naming: wanted, sources: 1, leads: true}, keep},
		{"nothing wants it", facts{owner: true, naming: referenced, sources: 1, leads: true}, keep},
		{"nobody has it", facts{owner: true, naming: wanted, denied: true, leads: true, sure: true}, fetch},
		{"nobody has it, another looks", facts{owner: true, naming: wanted, denied: true}, keep},
		{"nobody has it, some are down", facts{owner: true, naming: wanted, leads: true, sure: true}, keep},
		{"nobody has it, as is known", facts{owner: true, naming: wanted, lost: true, denied: true, leads: true}, keep},
		{"nothing at all", facts{}, keep},
	} {
		if got := decide(row.facts); got != row.want {
			t.Errorf("%s: action %d, want %d", row.name, got, row.want)
		}
	}
}

// TestDecideNeverDrops: over all facts there are, a copy goes only under the
// conditions that make it safe.
func TestDecideNeverDrops(t *testing.T) {
	for bits := range 1 << 9 {
		on := func(i int) bool { return bits&(1<<i) != 0 }
		for _, n := range []naming{unnamed, referenced, wanted} {
			f := facts{
				held: on(0), owner: on(1), naming: n, lost: on(2), denied: on(3), leads: on(4),
				sure: on(5), idle: on(6), over: on(7), confirmed: on(8),
			}
			for _, f.sources = range []int{0, 2} {
				for _, f.lacking = range []int{0, 2} {
					garbage := f.naming == unnamed && f.idle
					surplus := !f.owner && f.confirmed
					if decide(f) == drop && !(f.held && f.sure && (garbage || surplus)) {
						t.Fatalf("dropped: %+v", f)
					}
				}
			}
		}
	}
}
