package oci

import (
	_ "crypto/sha256" // go-digest finds hash functions by their registration
	_ "crypto/sha512"

	"github.com/opencontainers/go-digest"
)

// ParseDigest reads a digest of a supported algorithm, sha256 or sha512, in
// lower-case hex of the right length, else returns ErrDigestInvalid. What it
// returns is therefore safe in a path or a key.
func ParseDigest(s string) (digest.Digest, error) {
	d := digest.Digest(s)
	if err := d.Validate(); err != nil {
		// Validate takes what the platform has, and so knows of unknown
		// algorithms; its sentences are fit for clients.
		return "", ErrDigestInvalid.Because("%.160q: %v", s, err)
	}
	if _, err := ParseAlgorithm(string(d.Algorithm())); err != nil {
		return "", err
	}
	return d, nil
}

// ParseAlgorithm reads the name of a digest algorithm; "" is sha256. One that
// is not supported is ErrDigestInvalid.
func ParseAlgorithm(s string) (digest.Algorithm, error) {
	switch a := digest.Algorithm(s); a {
	case "":
		return digest.SHA256, nil
	case digest.SHA256, digest.SHA512:
		return a, nil
	}
	return "", ErrDigestInvalid.Because("algorithm %.32q is not supported, only sha256 and sha512", s)
}
