package auth

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Keys that sign tokens. A new one is made once the newest is keyAge old and a
// token is to be signed; one leaves once no token can be alive that it signed.
const (
	keySize   = 32
	keyIDSize = 8 // bytes, written in hex
	keyAge    = 24 * time.Hour
	keyLife   = refreshLife + keyAge
	maxKeys   = 64 // in the list, as far as this version writes it
)

// A node whose proposal of a new key failed keeps the old one for retryKeys.
const (
	keyTimeout = 10 * time.Second
	retryKeys  = time.Minute
)

// key signs and checks tokens.
type key struct {
	ID   string    `json:"id"`
	Key  []byte    `json:"key"`
	Made time.Time `json:"made"` // by the clock of the node that proposed it
}

// keyring holds the keys, in the order in which they were agreed on. That, not
// their times, tells which is the newest: clocks differ.
type keyring struct {
	keys     []key
	revision uint64 // of the setting, 0 where there is none
	broken   bool
}

// readKeys reads the list. One that is not understood has no keys, and must not
// be replaced without being asked.
func readKeys(set Setting) (keyring, error) {
	ring := keyring{revision: set.Revision}
	err := decodeStrict(set.Value, &ring.keys)
	seen := map[string]bool{}
	for _, k := range ring.keys {
		if err == nil && (!validKeyID(k.ID) || seen[k.ID] || len(k.Key) != keySize) {
			err = errors.New("a key is not fit")
		}
		seen[k.ID] = true
	}
	if err == nil && len(ring.keys) == 0 {
		err = errors.New("there are no keys")
	}
	if err != nil {
		return keyring{revision: set.Revision, broken: true}, err
	}
	return ring, nil
}

func validKeyID(id string) bool {
	b, err := hex.DecodeString(id)
	return err == nil && len(b) == keyIDSize && id == hex.EncodeToString(b)
}

func (ring *keyring) find(id string) (key, bool) {
	for _, k := range ring.keys {
		if k.ID == id {
			return k, true
		}
	}
	return key{}, false
}

// newest returns the key to sign with, if there is one.
func (ring *keyring) newest() (key, bool) {
	if len(ring.keys) == 0 {
		return key{}, false
	}
	return ring.keys[len(ring.keys)-1], true
}

func newKey(now time.Time) key {
	k := key{Key: make([]byte, keySize), Made: now.UTC().Truncate(time.Second)}
	id := make([]byte, keyIDSize)
	rand.Read(k.Key)
	rand.Read(id)
	k.ID = hex.EncodeToString(id)
	return k
}

// next returns the list with a new key at its end, and without those that are
// too old. The newest of before stays in any case, so that a clock that runs wild
// ends no access tokens, though it may end refresh tokens.
func (ring *keyring) next(now time.Time) []key {
	var out []key
	for i, k := range ring.keys {
		if i == len(ring.keys)-1 || i > len(ring.keys)-maxKeys && now.Sub(k.Made) <= keyLife {
			out = append(out, k)
		}
	}
	return append(out, newKey(now))
}

// signingKey returns the key to sign with, and sees to it that there is one and
// that it is young. Only the first key is waited for: while the mesh cannot
// agree on another, the old one serves.
func (a *Authority) signingKey(ctx context.Context) (key, error) {
	k, ok, err := a.newestKey()
	if err != nil || ok && a.now().Sub(k.Made) <= keyAge {
		return k, err
	}
	if ok {
		select {
		case a.rotating <- struct{}{}:
		default:
			return k, nil
		}
	} else {
		select {
		case a.rotating <- struct{}{}:
		case <-ctx.Done():
			return key{}, ctx.Err()
		}
	}
	defer func() { <-a.rotating }()
	return a.rotate(ctx)
}

func (a *Authority) newestKey() (key, bool, error) {
	s, err := a.current()
	if err != nil {
		return key{}, false, err
	}
	if s.keys.broken {
		return key{}, false, oci.ErrUnavailable.Because("this node cannot read the keys of tokens")
	}
	k, ok := s.keys.newest()
	return k, ok, nil
}

// rotate proposes a new key and returns the newest after that. Whoever calls it
// holds the token of rotating.
func (a *Authority) rotate(ctx context.Context) (key, error) {
	old, ok, err := a.newestKey()
	now := a.now()
	if err != nil || ok && (now.Sub(old.Made) <= keyAge || now.Before(a.rotateAfter)) {
		return old, err // somebody else did it, or it failed a moment ago
	}
	// A client that leaves must not keep the mesh from a new key.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keyTimeout)
	defer cancel()
	err = a.proposeKey(ctx, now)
	k, found, readErr := a.newestKey()
	switch {
	case readErr != nil:
		return key{}, readErr
	case err == nil && found, found && k.ID != old.ID:
		return k, nil
	case ok:
		a.rotateAfter = now.Add(retryKeys)
		a.log.Warn("no new key for tokens could be agreed on; the old one serves", "error", err)
		return old, nil
	}
	return key{}, oci.ErrUnavailable.Wrap(fmt.Errorf("agree on a key for tokens: %w", err))
}

// proposeKey adds a key to the list, unless somebody else changes it meanwhile:
// then theirs does, which this node knows after Sync.
func (a *Authority) proposeKey(ctx context.Context, now time.Time) error {
	s, err := a.current()
	if err != nil {
		return err
	}
	err = a.writeKeys(ctx, "flotilla", s.keys.next(now), s.keys.revision)
	if errors.Is(err, oci.ErrConflict) {
		return a.settings.Sync(ctx)
	}
	return err
}

func (a *Authority) writeKeys(ctx context.Context, actor string, keys []key, revision uint64) error {
	b, err := json.Marshal(keys)
	if err != nil {
		return fmt.Errorf("encode keys: %w", err)
	}
	_, err = a.settings.Change(ctx, actor, Change{Key: keysKey, Value: b, If: &revision})
	return err
}

// ReplaceKeys drops all keys of tokens for a new one, after which no token that
// was made before is good: what to do when somebody may have seen them.
func (a *Authority) ReplaceKeys(ctx context.Context, actor string) (everywhere bool, err error) {
	b, err := json.Marshal([]key{newKey(a.now())})
	if err != nil {
		return false, fmt.Errorf("encode keys: %w", err)
	}
	return a.settings.Change(ctx, actor, Change{Key: keysKey, Value: b})
}
