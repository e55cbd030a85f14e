package metadata

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// allSettings lists the settings of a replica: key=value@revision.
func (s *state) allSettings(t testing.TB) string {
	t.Helper()
	list, err := s.settings("")
	must(t, err)
	var b strings.Builder
	for _, one := range list {
		fmt.Fprintf(&b, "%s=%.9s@%d ", one.Key, one.Value, one.Revision)
	}
	return strings.TrimSpace(b.String())
}

// TestSettingRules has a row for each rule of a change: what leads up to it,
// from entry 1 on, what it comes to, and what settings there are then.
func TestSettingRules(t *testing.T) {
	two := []any{changes(setTo("a", "1")), changes(setTo("b", "2"))}
	long := strings.Repeat("k", maxSettingKey)
	big := strings.Repeat("v", maxSetting)
	bigs := func(n int) (all []*wire.Setting) {
		for i := range n {
			all = append(all, setTo(fmt.Sprintf("%010d", i), big))
		}
		return all
	}
	full := make([]*wire.Setting, maxSettings)
	for i := range full {
		full[i] = setTo(fmt.Sprintf("%05d", i), "")
	}
	r := newReplica(t)
	for _, row := range []struct {
		name   string
		before []any
		op     *wire.Settings
		want   *oci.Error
		left   string // "-" is not looked at
	}{
		{"write", nil, changes(setTo("a", "1")), nil, "a=1@1"},
		{"write of nothing", nil, changes(setTo("a", "")), nil, "a=@1"},
		{"write again", two, changes(setTo("a", "3")), nil, "a=3@3 b=2@2"},
		{"write of the same", two, changes(setTo("a", "1")), nil, "a=1@3 b=2@2"},
		{"remove", two, changes(unset("a")), nil, "b=2@2"},
		{"remove what is not there", two, changes(unset("c")), nil, "a=1@1 b=2@2"},
		{"many at once", two, changes(setTo("c", "3"), unset("a"), setTo("b", "4")), nil, "b=4@3 c=3@3"},
		{"a prefix of another", two, changes(setTo("aa", "3")), nil, "a=1@1 aa=3@3 b=2@2"},

		{"if it is as it was", two, changes(ifAt(1, setTo("a", "3"))), nil, "a=3@3 b=2@2"},
		{"if it is older", append(two[:2:2], changes(setTo("a", "3"))), changes(ifAt(1, setTo("a", "4"))), oci.ErrConflict, "a=3@3 b=2@2"},
		{"if it is another's revision", two, changes(ifAt(2, setTo("a", "3"))), oci.ErrConflict, "a=1@1 b=2@2"},
		{"if it was removed", append(two[:2:2], changes(unset("a"))), changes(ifAt(1, setTo("a", "4"))), oci.ErrConflict, "b=2@2"},
		{"if it is absent", two, changes(ifAt(0, setTo("c", "3"))), nil, "a=1@1 b=2@2 c=3@3"},
		{"if it were absent", two, changes(ifAt(0, setTo("a", "3"))), oci.ErrConflict, "a=1@1 b=2@2"},
		{"removed if it is as it was", two, changes(ifAt(1, unset("a"))), nil, "b=2@2"},
		{"removed if it were otherwise", two, changes(ifAt(9, unset("a"))), oci.ErrConflict, "a=1@1 b=2@2"},
		{"absent stays absent", two, changes(ifAt(0, unset("c"))), nil, "a=1@1 b=2@2"},
		{"all or nothing", two, changes(setTo("c", "3"), ifAt(9, setTo("a", "3")), unset("b")), oci.ErrConflict, "a=1@1 b=2@2"},
		{"one for all", two, changes(ifAt(1, setTo("a", "3")), ifAt(2, unset("b")), setTo("c", "4")), nil, "a=3@3 c=4@3"},

		{"no change", nil, changes(), oci.ErrDenied, ""},
		{"no key", nil, changes(setTo("", "1")), oci.ErrDenied, ""},
		{"a key with a zero byte", nil, changes(setTo("a\x00", "1")), oci.ErrDenied, ""},
		{"a key with a space", nil, changes(setTo("a b", "1")), oci.ErrDenied, ""},
		{"a key with a line feed", nil, changes(setTo("a\n", "1")), oci.ErrDenied, ""},
		{"a key beyond ASCII", nil, changes(setTo("ä", "1")), oci.ErrDenied, ""},
		{"a key twice", nil, changes(setTo("a", "1"), unset("a")), oci.ErrDenied, ""},
		{"the longest key", nil, changes(setTo(long, "1")), nil, long + "=1@1"},
		{"a longer key", nil, changes(setTo(long+"k", "1")), oci.ErrDenied, ""},
		{"the largest value", nil, changes(setTo("a", big)), nil, "a=vvvvvvvvv@1"},
		{"a larger value", nil, changes(setTo("a", big+"v")), oci.ErrDenied, ""},
		{"a good one beside a bad one", nil, changes(setTo("a", "1"), setTo("", "2")), oci.ErrDenied, ""},
		{"the largest change", nil, changes(append(bigs(15), setTo("x", big[:maxSetting-151]))...), nil, "-"},
		{"a larger change", nil, changes(append(bigs(15), setTo("x", big[:maxSetting-150]))...), oci.ErrDenied, ""},
		{"as many as there may be", nil, changes(full...), nil, "-"},
		{"one more", []any{changes(full...)}, changes(setTo("x", "")), oci.ErrDenied, "-"},
		{"one more in one change", nil, changes(append(full[:maxSettings:maxSettings], setTo("x", ""))...), oci.ErrDenied, ""},
		{"one in place of another", []any{changes(full...)}, changes(setTo("x", ""), unset("00000")), nil, "-"},
		{"another value of one", []any{changes(full...)}, changes(setTo("00000", "1")), nil, "-"},
		{"one more after one went", []any{changes(full...), changes(unset("00000"))}, changes(setTo("x", "")), nil, "-"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r.check(t, row.before, row.op, row.want, 0)
			if got := r.allSettings(t); got != row.left && row.left != "-" {
				t.Errorf("settings %.200q, want %.200q", got, row.left)
			}
			if sums, err := loadSettingSums(r.db); err != nil || sums != r.settingSums {
				t.Errorf("counted %+v, there are %+v (%v)", r.settingSums, sums, err)
			}
		})
	}
}

// TestSettingBytes: however they are written, settings take no more than their
// bound together, and what was removed or made smaller makes room.
func TestSettingBytes(t *testing.T) {
	r := newReplica(t)
	value := strings.Repeat("v", maxSetting-4)
	const fit = maxSettingBytes / maxSetting
	for i := range fit {
		r.must(command(0, changes(setTo(fmt.Sprintf("%04d", i), value))))
	}
	refused := func(when string, want bool, all ...*wire.Setting) {
		t.Helper()
		got := r.do(command(0, changes(all...)))[0].err
		if (got != nil) != want || want && !got.Is(oci.ErrDenied) {
			t.Errorf("%s: %v", when, got)
		}
	}
	r.restart()
	refused("a byte more", true, setTo("x", ""))
	refused("a longer value", true, setTo("0000", value+"v"))
	refused("another in the place of one", false, setTo("0000", value[1:]+"w"))
	refused("a byte less", false, setTo("0000", value[1:]))
	refused("and that byte", false, setTo("x", ""))
	refused("and one more", true, setTo("x", "y"))
	refused("one that grows by what another gives", false, unset("x"), setTo("0000", value))
	refused("beside nothing removed", true, unset("x"), setTo("y", ""))
	if want := (settingSums{count: fit, bytes: maxSettingBytes}); r.settingSums != want {
		t.Errorf("%+v, want %+v", r.settingSums, want)
	}
}

// TestSettingsVersion: whoever asks for the version first has settings that are
// as new at least, also while the whole state is replaced; and there is a later
// one after each change, and after a restart none that was there before.
func TestSettingsVersion(t *testing.T) {
	r, other := newReplica(t), newReplica(t)
	write := func(x *replica, i int) {
		x.must(command(0, changes(setTo("k", fmt.Sprint(i)))))
	}
	write(r, 0)
	stop := meanwhile(t, 2, func(int) bool {
		v := r.settingsVersion.Load()
		all, err := r.settings("k")
		if err != nil || len(all) != 1 || all[0].Revision < v {
			t.Errorf("at version %d: %+v %v", v, all, err)
			return false
		}
		return true
	})
	for i := range 300 {
		before := r.settingsVersion.Load()
		if i%100 == 99 {
			for other.last < r.last+5 {
				write(other, i)
			}
			must(t, r.restore(other.stream()))
			r.last = r.applied()
		} else {
			write(r, i)
		}
		if v := r.settingsVersion.Load(); v <= before {
			t.Errorf("version %d after %d", v, before)
		}
	}
	stop()
	before := r.settingsVersion.Load()
	r.must(command(0, pushed("a", "b")))
	if r.do(command(0, changes(ifAt(1, setTo("k", "")))))[0].err == nil || r.settingsVersion.Load() != before {
		t.Error("a version of no change")
	}
	r.restart()
	if v := r.settingsVersion.Load(); v < before {
		t.Errorf("version %d after a restart, %d before", v, before)
	}
}

// TestImmutableReceipt: who asks again is told again which tag it is, also of a
// state that came over the wire.
func TestImmutableReceipt(t *testing.T) {
	r, other := populated(t), newReplica(t)
	move := command(0, fixed(imageOf("a/b", "s", []string{"v2"}), "v2"))
	move.RequestId = "move"
	for _, when := range []string{"first", "again", "after a restart", "elsewhere"} {
		if got := r.do(move)[0].err; got == nil || !strings.Contains(got.Error(), "tag v2 is immutable") {
			t.Errorf("%s: %v", when, got)
		}
		switch when {
		case "again":
			r.restart()
		case "after a restart":
			must(t, other.restore(r.stream()))
			r, other.last = other, r.last
		}
	}
}

// TestSettingsRestored: a backup's settings take the place of those of the mesh,
// as written now, and those of the mesh stay where a backup has none.
func TestSettingsRestored(t *testing.T) {
	ours := changes(setTo("a", "ours"), setTo("b", "ours"))
	for _, row := range []struct {
		name        string
		backup, own []any
		want        string
	}{
		{"both have some", []any{changes(setTo("b", "theirs"), setTo("c", "theirs"))}, []any{ours}, "b=theirs@77 c=theirs@77"},
		{"the backup has some", []any{changes(setTo("b", "theirs"))}, nil, "b=theirs@77"},
		{"the mesh has some", nil, []any{ours}, "a=ours@2 b=ours@2"},
		{"the backup had some", []any{changes(setTo("b", "theirs")), changes(unset("b"))}, []any{ours}, "a=ours@2 b=ours@2"},
		{"none has any", nil, nil, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, names := range []bool{true, false} {
				from, own := newReplica(t), newReplica(t)
				from.must(command(0, levelled(FeatureLevel)))
				if names {
					from.must(command(0, pushed("a", "blob")))
				}
				own.must(command(0, levelled(FeatureLevel)))
				for _, op := range row.backup {
					from.must(command(0, op))
				}
				for _, op := range row.own {
					own.must(command(0, op))
				}
				rw, err := newRewriter(bytes.NewReader(from.stream()), own.db, progress{index: 77, term: 7})
				must(t, err)
				b, err := io.ReadAll(rw)
				must(t, err)
				must(t, own.restore(b))
				if got := own.allSettings(t); got != row.want {
					t.Errorf("settings %q, want %q", got, row.want)
				}
				if v := own.settingsVersion.Load(); v != 77 {
					t.Errorf("version %d", v)
				}
			}
		})
	}
	t.Run("damaged", func(t *testing.T) {
		own := populated(t)
		own.must(command(0, ours))
		b := forge(header{cluster: "mesh", epoch: 3, index: 9, term: 2}, "\x01", string(progress{index: 9, term: 2}.encode()), "\x05k", "\x09\x07v")
		rw, err := newRewriter(bytes.NewReader(b), own.db, progress{index: 77, term: 7})
		must(t, err)
		if _, err := io.ReadAll(rw); err == nil {
			t.Error("a damaged setting was taken in")
		}
	})
}

// TestSettingsPrefix: what a prefix selects, and that it is the caller's.
func TestSettingsPrefix(t *testing.T) {
	r := newReplica(t)
	r.must(command(0, changes(setTo("user/a", "1"), setTo("user/b", "2"), setTo("user", "3"), setTo("user0", "4"), setTo("~", "5"))))
	for prefix, want := range map[string][]string{
		"user/": {"user/a", "user/b"}, "user": {"user", "user/a", "user/b", "user0"}, "~": {"~"}, "x": nil, "user/a": {"user/a"},
		"": {"user", "user/a", "user/b", "user0", "~"},
	} {
		all, err := r.settings(prefix)
		must(t, err)
		var keys []string
		for _, s := range all {
			keys = append(keys, s.Key)
			if s.Value == nil {
				t.Errorf("%s has no value", s.Key)
			}
			clear(s.Value)
		}
		if !slices.Equal(keys, want) {
			t.Errorf("%q selects %q, want %q", prefix, keys, want)
		}
	}
	if got, want := r.allSettings(t), "user=3@1 user/a=1@1 user/b=2@1 user0=4@1 ~=5@1"; got != want {
		t.Errorf("settings %q, want %q", got, want)
	}
}
