package auth_test

import (
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestTokensOfOneNodeAtAnother(t *testing.T) {
	m, c := newAgreed(), morning()
	a, b := newNode(t, m, c, nil), newNode(t, m, c, nil)
	furnish(t, a)
	const scope = "repository:team-a/x:pull"
	pull := func(n *node, token string) error { return n.may(bearer(token), "team-a/x", auth.Pull) }

	before := a.token(t, "ann", annPassword, scope)
	wantErr(t, "before", pull(b, before), nil)
	refresh, err := a.get(t, "ann", annPassword, url.Values{"offline_token": {"true"}})
	if err != nil {
		t.Fatal(err)
	}
	c.pass(24*time.Hour + time.Second)
	last := b.token(t, "bob", bobPassword) // rotates
	if keys := signingKeys(t, b); len(keys) != 2 {
		t.Fatalf("%d keys after a day", len(keys))
	}
	b.fallBehind()
	c.pass(25 * time.Hour)
	during := a.token(t, "ann", annPassword, scope)
	wantErr(t, "with a key that the other has not heard of", pull(b, during), nil)
	if b.syncs.Load() == 0 {
		t.Error("the other did not lag")
	}
	if _, err := b.Identify(bearer(last)); !errors.Is(err, oci.ErrUnauthorized) {
		t.Errorf("yesterday's token: %v", err)
	}
	if _, err := b.post(t, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh.Refresh}}); err != nil {
		t.Errorf("a refresh token of two keys ago: %v", err)
	}
	for range 40 {
		c.pass(24*time.Hour + time.Second)
		a.token(t, "ann", annPassword)
	}
	if keys := signingKeys(t, b); len(keys) > 33 || c.now().Sub(keys[0].Made) > 32*24*time.Hour {
		t.Errorf("%d keys, the first of %v", len(keys), keys[0].Made)
	}
	if _, err := b.post(t, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh.Refresh}}); !errors.Is(err, oci.ErrUnauthorized) {
		t.Errorf("a refresh token of 42 days ago: %v", err)
	}
}

func TestKeysWithoutQuorum(t *testing.T) {
	m, c := newAgreed(), morning()
	a := newNode(t, m, c, nil)
	furnish(t, a)
	m.fail(oci.ErrUnavailable)
	if _, err := a.get(t, "ann", annPassword, nil); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("a token before there is any key: %v", err)
	}
	m.fail(nil)
	a.token(t, "ann", annPassword)
	c.pass(48 * time.Hour)
	m.fail(oci.ErrUnavailable)
	token := a.token(t, "ann", annPassword, "repository:team-a/x:pull")
	wantErr(t, "a token by an old key", a.may(bearer(token), "team-a/x", auth.Pull), nil)
	if keys := signingKeys(t, a); len(keys) != 1 {
		t.Fatalf("%d keys", len(keys))
	}
	m.fail(nil)
	c.pass(time.Minute)
	a.token(t, "ann", annPassword)
	if keys := signingKeys(t, a); len(keys) != 2 {
		t.Errorf("%d keys once the mesh agrees again", len(keys))
	}
}

// TestFirstKeyAtManyNodes asks all nodes for a token at once: they agree on a
// key, and every token is good at every node.
func TestFirstKeyAtManyNodes(t *testing.T) {
	m, c := newAgreed(), morning()
	nodes := make([]*node, 5)
	for i := range nodes {
		nodes[i] = newNode(t, m, c, nil)
	}
	furnish(t, nodes[0])
	tokens := make([]string, 2*len(nodes))
	var all sync.WaitGroup
	for i := range tokens {
		all.Go(func() {
			out, err := nodes[i%len(nodes)].get(t, "ann", annPassword, url.Values{"scope": {"repository:team-a/x:pull"}})
			wantErr(t, "a token", err, nil)
			tokens[i] = out.Token
		})
	}
	all.Wait()
	if keys := signingKeys(t, nodes[0]); len(keys) != 1 {
		t.Errorf("%d keys", len(keys))
	}
	for _, n := range nodes {
		for _, token := range tokens {
			wantErr(t, "a pull", n.may(bearer(token), "team-a/x", auth.Pull), nil)
		}
	}
}

// TestKeysOfAWildClock has a node whose clock is a year ahead make a key: the
// others go on with it, and access tokens that are out stay good.
func TestKeysOfAWildClock(t *testing.T) {
	m, c := newAgreed(), morning()
	a := newNode(t, m, c, nil)
	furnish(t, a)
	token := a.token(t, "ann", annPassword, "repository:team-a/x:pull")
	wild := newNode(t, m, newClock(c.now().Add(365*24*time.Hour)), nil)
	future := wild.token(t, "ann", annPassword, "repository:team-a/x:pull")
	wantErr(t, "a token of next year", a.may(bearer(future), "team-a/x", auth.Pull), oci.ErrUnauthorized)
	wantErr(t, "a token of today", a.may(bearer(token), "team-a/x", auth.Pull), nil)
	again := a.token(t, "ann", annPassword, "repository:team-a/x:pull")
	wantErr(t, "another token of today", a.may(bearer(again), "team-a/x", auth.Pull), nil)
}

func TestTokensOfAnotherMesh(t *testing.T) {
	m, c := newAgreed(), morning()
	a := newNode(t, m, c, nil)
	furnish(t, a)
	token := a.token(t, "ann", annPassword, "repository:team-a/x:pull")
	for name, row := range map[string]struct {
		mesh string
		want *oci.Error
	}{"a mesh restored under another id": {"another", oci.ErrUnauthorized}, "no mesh yet": {"", oci.ErrUnavailable}} {
		// The same settings, keys included, as after a restore.
		b := newNode(t, m, c, func(cfg *auth.Config) { cfg.Mesh = func() string { return row.mesh } })
		wantErr(t, name, b.may(bearer(token), "team-a/x", auth.Pull), row.want)
	}
	b := newNode(t, m, c, func(cfg *auth.Config) { cfg.Mesh = func() string { return "" } })
	if _, err := b.get(t, "ann", annPassword, nil); !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("a token of no mesh: %v", err)
	}
}
