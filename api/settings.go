package api

import (
	"context"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/metadata"
)

// Settings returns what the mesh agrees on about who may do what: the
// catalogue's settings as package auth takes them.
func Settings(c *metadata.Catalog) auth.Settings { return settings{c} }

type settings struct{ *metadata.Catalog }

// Version implements auth.Settings.
func (s settings) Version() uint64 { return s.SettingsVersion() }

// List implements auth.Settings.
func (s settings) List(prefix string) ([]auth.Setting, error) {
	all, err := s.Settings(prefix)
	out := make([]auth.Setting, len(all))
	for i, one := range all {
		out[i] = auth.Setting(one)
	}
	return out, err
}

// Change implements auth.Settings.
func (s settings) Change(ctx context.Context, actor string, changes ...auth.Change) (everywhere bool, err error) {
	in := make([]metadata.Change, len(changes))
	for i, one := range changes {
		in[i] = metadata.Change(one)
	}
	return s.Catalog.Change(ctx, actor, in...)
}
