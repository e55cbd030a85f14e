package node

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/metadata"
)

func TestOperatorToken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	secret, err := makeSecret(file)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if _, err := makeSecret(other); err != nil {
		t.Fatal(err)
	}
	trust := stranger(t, secret, newUUID(), metadata.Cluster{})
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	token := func(file string) string {
		s, err := OperatorToken(file, now)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ours := token(file)
	until, mac, _ := strings.Cut(ours, ".")
	for _, row := range []struct {
		name  string
		token string
		at    time.Time
		good  bool
	}{
		{"at once", ours, now, true},
		{"just in time", ours, now.Add(tokenLife), true},
		{"another secret", token(other), now, false},
		{"long ago", ours, now.Add(time.Hour), false},
		{"from the future", ours, now.Add(-time.Hour), false},
		{"another time under the same MAC", "9" + ours, now, false},
		{"no MAC", until, now, false},
		{"no time", "." + mac, now, false},
		{"nothing", "", now, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := trust.checkToken(row.token, row.at); (err == nil) != row.good {
				t.Errorf("checkToken: %v, want good %v", err, row.good)
			}
		})
	}
}
