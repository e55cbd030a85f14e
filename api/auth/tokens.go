package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// How long tokens are good, and by how much clocks may differ.
const (
	accessLife  = 5 * time.Minute
	refreshLife = 30 * 24 * time.Hour
	clockLeeway = time.Minute
)

// The header typ of the two kinds (RFC 9068 for the first): neither is taken
// for the other.
const (
	accessType  = "at+jwt"
	refreshType = "rt+jwt"
)

// What is looked at and remembered. A token for maxScopes repositories of the
// longest names stays below maxToken.
const (
	maxToken       = 16 << 10
	maxVerified    = 2048
	maxVerifiedLen = 2 << 10 // a longer token is checked each time
)

// claims are what a token says. Access is what the distribution project's
// "Docker Registry v2 Bearer token specification" calls so.
type claims struct {
	jwt.RegisteredClaims
	Generation string   `json:"acc,omitempty"` // of the account
	Access     []access `json:"access,omitempty"`
}

type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

// verified is a token that was made by this mesh and not altered.
type verified struct {
	subject    string // "" is nobody in particular
	generation string
	grant      grant

	from, until time.Time // with the leeway
}

// verifiedKey stands for a token and all that it was checked with but the time.
type verifiedKey struct {
	sum  [sha256.Size]byte // of the token, its kind and the mesh
	keys uint64            // revision of the keys
}

// sign makes a token of the kind for p.
func (a *Authority) sign(ctx context.Context, kind string, p Principal, g grant, now, expires time.Time) (string, error) {
	mesh := a.mesh()
	if mesh == "" {
		return "", oci.ErrUnavailable.Because("this node is not part of a mesh yet")
	}
	k, err := a.signingKey(ctx)
	if err != nil {
		return "", err
	}
	t := jwt.NewWithClaims(jwt.SigningMethodHS256, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: mesh, Audience: jwt.ClaimStrings{mesh}, Subject: p.name, ID: rand.Text(),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(expires),
		},
		Generation: p.generation,
		Access:     g.access(),
	})
	t.Header["typ"], t.Header["kid"] = kind, k.ID
	text, err := t.SignedString(k.Key)
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return text, nil
}

// access returns the grant as claims, in the order of names.
func (g grant) access() []access {
	var out []access
	if g.catalog {
		out = append(out, access{registryType, catalogName, []string{anyAction}})
	}
	for repo, act := range g.repositories {
		if names := actionsOf(act); len(names) > 0 {
			out = append(out, access{repositoryType, repo, names})
		}
	}
	slices.SortFunc(out, func(a, b access) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// verify checks a token of the kind: ErrUnauthorized unless this mesh made it
// for now. A key that is unknown here may be new: then the mesh is asked, which
// may fail with ErrUnavailable.
func (a *Authority) verify(ctx context.Context, text, kind string) (*verified, error) {
	if len(text) > maxToken {
		return nil, oci.ErrUnauthorized.Because("the token is too long")
	}
	s, err := a.current()
	if err != nil {
		return nil, err
	}
	now, mesh := a.now(), a.mesh()
	if mesh == "" || s.keys.broken {
		return nil, oci.ErrUnavailable.Because("this node cannot check tokens now")
	}
	known := verifiedKey{sha256.Sum256([]byte(kind + " " + mesh + " " + text)), s.keys.revision}
	if v, ok := a.verified.get(known); ok {
		if now.Before(v.from) || !now.Before(v.until) {
			return nil, oci.ErrUnauthorized.Because("the token is not for this time")
		}
		return v, nil
	}
	v, err := a.parse(text, kind, mesh, s, now)
	if errors.Is(err, errUnknownKey) {
		if s, err = a.newer(ctx); err != nil {
			return nil, err
		}
		known.keys = s.keys.revision
		v, err = a.parse(text, kind, mesh, s, now)
	}
	if err != nil {
		return nil, oci.ErrUnauthorized.Because("the token is not good here").Wrap(err)
	}
	if len(text) <= maxVerifiedLen {
		a.verified.add(known, v)
	}
	return v, nil
}

// newer returns the settings as they are after all that the mesh has agreed on
// until now. Strangers can cause it, so it happens a bounded number of times.
func (a *Authority) newer(ctx context.Context) (*state, error) {
	if !a.looks.AllowN(a.now(), 1) {
		return nil, oci.ErrUnavailable.Because("too many tokens with unknown keys")
	}
	if err := a.settings.Sync(ctx); err != nil {
		return nil, err
	}
	return a.current()
}

var errUnknownKey = errors.New("signed with an unknown key")

// parse checks all of a token against the settings.
func (a *Authority) parse(text, kind, mesh string, s *state, now time.Time) (*verified, error) {
	var c claims
	_, err := jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithStrictDecoding(),
		jwt.WithIssuer(mesh), jwt.WithAudience(mesh), jwt.WithIssuedAt(), jwt.WithNotBeforeRequired(), jwt.WithExpirationRequired(),
		jwt.WithLeeway(clockLeeway), jwt.WithTimeFunc(func() time.Time { return now }),
	).ParseWithClaims(text, &c, func(t *jwt.Token) (any, error) {
		id, _ := t.Header["kid"].(string)
		if t.Header["typ"] != kind || len(t.Header) != len([]string{"alg", "typ", "kid"}) || !validKeyID(id) {
			return nil, errors.New("not a header that this mesh writes")
		}
		k, ok := s.keys.find(id)
		if !ok {
			return nil, errUnknownKey
		}
		return k.Key, nil
	})
	if err != nil {
		return nil, err
	}
	return &verified{
		subject: c.Subject, generation: c.Generation, grant: grantOf(c.Access),
		from: c.NotBefore.Add(-clockLeeway), until: c.ExpiresAt.Add(clockLeeway),
	}, nil
}

func grantOf(all []access) grant {
	g := grant{repositories: make(map[string]Action, len(all))}
	for _, one := range all {
		switch {
		case one.Type == registryType && one.Name == catalogName:
			g.catalog = true
		case one.Type == repositoryType:
			for _, action := range one.Actions {
				g.repositories[one.Name] |= actionOf(action)
			}
		}
	}
	return g
}
