package node

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// An operator shows a token that anybody who has the mesh's secret can make: the
// time until which it is good, and an HMAC over that. The secret itself never
// crosses the public port, and what a listener may catch is worth nothing after
// ten minutes: the token's life, and what clocks may differ by.
const (
	tokenLife  = 5 * time.Minute
	tokenDrift = tokenLife // that clocks may differ by
)

// operatorKey is the part of the secret that tokens are made with.
func operatorKey(secret []byte) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, secret, nil, "flotilla/1 operator", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("derive operator key: %w", err)
	}
	return key, nil
}

// OperatorToken makes a token for the admin calls on the public port of any
// node, from the file that holds the mesh's secret: the first line of two.
func OperatorToken(secretFile string, now time.Time) (string, error) {
	secrets, err := readSecrets(secretFile, false)
	if err != nil {
		return "", err
	}
	key, err := operatorKey(secrets[0])
	if err != nil {
		return "", err
	}
	until := strconv.FormatInt(now.Add(tokenLife).Unix(), 10)
	return until + "." + tokenMAC(key, until), nil
}

func tokenMAC(key []byte, until string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(until))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// checkToken returns nil for a token made with a secret of ours that is good at
// now.
func (t *trust) checkToken(token string, now time.Time) error {
	until, mac, _ := strings.Cut(token, ".")
	if !slices.ContainsFunc(t.roots, func(r root) bool { return hmac.Equal([]byte(mac), []byte(tokenMAC(r.operator, until))) }) {
		return oci.ErrUnauthorized.Because("the token was made with another secret")
	}
	unix, err := strconv.ParseInt(until, 10, 64)
	left := time.Unix(unix, 0).Sub(now)
	if err != nil || left < -tokenDrift || left > tokenLife+tokenDrift {
		return oci.ErrUnauthorized.Because("the token is good for another time: compare the clocks of the two machines")
	}
	return nil
}
