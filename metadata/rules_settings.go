package metadata

import (
	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// Bounds on settings. They are part of the rules of Apply: a later version may
// change them only behind a feature level.
const (
	maxSettingKey   = 256
	maxSetting      = 256 << 10
	maxSettings     = 10_000
	maxSettingBytes = 16 << 20 // of all keys and values
	maxChange       = 4 << 20  // of the keys and values in one entry
)

// change writes and removes settings, if each is still the one that its change
// is meant for.
func (t *tx) change(op *wire.Settings) (decision, error) {
	if !validChanges(op.Changes) {
		return decision{verdict: badSetting}, nil
	}
	sums := t.settings
	for _, c := range op.Changes {
		old, known, err := getSetting(t.b, c.Key)
		if err != nil {
			return decision{}, err
		}
		if c.Revision != nil && *c.Revision != old.revision { // 0 where it is absent
			return decision{verdict: settingDiffers}, nil
		}
		if known {
			sums.add(c.Key, old.value, -1)
		}
		if c.Value != nil {
			sums.add(c.Key, c.Value, 1)
		}
	}
	if sums.count > maxSettings || sums.bytes > maxSettingBytes {
		return decision{verdict: settingsFull}, nil
	}
	for _, c := range op.Changes {
		if err := t.setSetting(c); err != nil {
			return decision{}, err
		}
	}
	t.settings, t.settingsChanged = sums, true
	return decision{}, nil
}

// validChanges reports whether changes are within bounds, each of another key.
func validChanges(changes []*wire.Setting) bool {
	if len(changes) == 0 || len(changes) > maxSettings {
		return false
	}
	size := 0
	seen := make(map[string]bool, len(changes))
	for _, c := range changes {
		if !validSettingKey(c.Key) || len(c.Value) > maxSetting || seen[c.Key] {
			return false
		}
		seen[c.Key] = true
		size += len(c.Key) + len(c.Value)
	}
	return size <= maxChange
}

// validSettingKey reports whether key is of printable ASCII characters, without
// spaces.
func validSettingKey(key string) bool {
	if key == "" || len(key) > maxSettingKey {
		return false
	}
	for i := range len(key) {
		if key[i] <= ' ' || key[i] > '~' {
			return false
		}
	}
	return true
}

func (t *tx) setSetting(c *wire.Setting) error {
	if c.Value == nil {
		return t.delete(settingKey(c.Key))
	}
	s := settingRecord{revision: t.at.index, value: c.Value}
	return t.b.Set(settingKey(c.Key), s.encode(), nil)
}

// getSetting returns the setting under key; its value is the caller's. The zero
// value is what is absent.
func getSetting(r pebble.Reader, key string) (s settingRecord, ok bool, err error) {
	ok, err = get(r, settingKey(key), func(v []byte) (err error) {
		s, err = decodeSetting(v)
		return err
	})
	return s, ok, err
}

// settingSums says how much of the bounds is taken.
type settingSums struct{ count, bytes int }

func (s *settingSums) add(key string, value []byte, n int) {
	s.count += n
	s.bytes += n * (len(key) + len(value))
}

func loadSettingSums(r pebble.Reader) (s settingSums, err error) {
	err = scan(r, []byte{keySetting}, func(key, v []byte) (bool, error) {
		one, err := decodeSetting(v)
		s.add(string(key), one.value, 1)
		return true, err
	})
	return s, err
}
