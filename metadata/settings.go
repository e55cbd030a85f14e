package metadata

import (
	"context"
	"fmt"

	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// Settings are small values that all nodes agree on and the catalogue does not
// read: who may do what is kept so, by those who know what it means.

// Setting is a value under a key of 1 to 256 printable ASCII characters without
// spaces.
type Setting struct {
	Key      string
	Value    []byte // at most 256 KiB
	Revision uint64 // index of the log's entry that wrote it; never 0
}

// Change writes a setting or removes it.
type Change struct {
	Key   string
	Value []byte // nil removes what is there, if anything is
	// If is the Revision that the setting must have, 0 if there must be none;
	// with nil the change is made whatever there is.
	If *uint64
}

// Change makes all of the changes, each of another key, or none. Actor is who
// asked for it, for people who read the log. Everywhere says that every node
// that seems alive knows of it, and so that none decides by what was before.
//
// ErrConflict where a setting has not the revision that its change is meant
// for: read them again. ErrDenied where a change is malformed or larger than
// 4 MiB, or a mesh would keep more than 10,000 settings, or 16 MiB of them.
// ErrUnsupported while a member of a level below 3 remains.
func (c *Catalog) Change(ctx context.Context, actor string, changes ...Change) (everywhere bool, err error) {
	op := &wire.Settings{Changes: make([]*wire.Setting, len(changes))}
	for i, ch := range changes {
		op.Changes[i] = &wire.Setting{Key: ch.Key, Value: ch.Value, Revision: ch.If}
	}
	if !validChanges(op.Changes) { // the log need not hear of it
		return false, fmt.Errorf("change settings: %w", decision{verdict: badSetting}.result().err)
	}
	cmd := &wire.Command{Actor: actor, Op: &wire.Command_Settings{Settings: op}}
	return c.writeEverywhere(ctx, "change settings", cmd)
}

// Settings returns the settings whose keys start with prefix, in the order of
// their keys, as this replica knows them. They are the caller's.
func (c *Catalog) Settings(prefix string) ([]Setting, error) {
	all, err := c.state.settings(prefix)
	return all, wrapRead("settings", err)
}

// SettingsVersion is later after a change of settings: at every node that has
// applied it, so before Change has answered that it is everywhere. Whoever keeps
// what it made of the settings asks for the version first and for Settings then,
// which are as new at least, and need not look again while the version is the
// same. It may rise without a change, and means nothing to another process.
func (c *Catalog) SettingsVersion() uint64 { return c.state.settingsVersion.Load() }

func (s *state) settings(prefix string) (all []Setting, err error) {
	db, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer s.mu.RUnlock()
	err = scan(db, settingKey(prefix), func(rest, v []byte) (bool, error) {
		one, err := decodeSetting(v)
		all = append(all, Setting{Key: prefix + string(rest), Value: one.value, Revision: one.revision})
		return true, err
	})
	return all, err
}
