package metadata

import (
	"maps"
	"slices"

	"pgregory.net/rapid"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// The part of the model that is about settings.

var modelSettings = []string{"s", "s/0", "s/1"}

func (m *model) change(op *wire.Settings) *oci.Error {
	if len(op.Changes) == 0 {
		return oci.ErrDenied
	}
	for _, c := range op.Changes {
		if c.Revision != nil && m.settings[c.Key].Revision != *c.Revision {
			return oci.ErrConflict
		}
	}
	for _, c := range op.Changes {
		delete(m.settings, c.Key)
		if c.Value != nil {
			m.settings[c.Key] = Setting{c.Key, c.Value, m.index}
		}
	}
	return nil
}

func (m *model) agreeSettings(t *rapid.T, s *state) {
	var want []Setting
	for _, key := range slices.Sorted(maps.Keys(m.settings)) {
		want = append(want, m.settings[key])
	}
	got, err := s.settings("")
	same := func(a, b Setting) bool {
		return a.Key == b.Key && string(a.Value) == string(b.Value) && a.Revision == b.Revision
	}
	if err != nil || !slices.EqualFunc(got, want, same) {
		t.Fatalf("settings %v %v, want %v", got, err, want)
	}
	if sums, err := loadSettingSums(s.db); err != nil || sums != s.settingSums {
		t.Fatalf("settings of %+v, counted as %+v: %v", sums, s.settingSums, err)
	}
}

// drawChange draws changes that mostly name the revision that there is.
func drawChange(t *rapid.T, m *model) *wire.Settings {
	op := new(wire.Settings)
	for _, key := range modelSettings {
		if rapid.Bool().Draw(t, "same") {
			continue
		}
		c := unset(key)
		if rapid.Bool().Draw(t, "write") {
			c = setTo(key, rapid.SampledFrom([]string{"", "x", "longer"}).Draw(t, "value"))
		}
		switch rapid.IntRange(0, 5).Draw(t, "if") {
		case 0, 1, 2:
			ifAt(m.settings[key].Revision, c)
		case 3:
			ifAt(rapid.Uint64Range(0, m.index).Draw(t, "revision"), c)
		}
		op.Changes = append(op.Changes, c)
	}
	return op
}
