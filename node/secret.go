package node

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

const (
	minSecret  = 32 // random bytes that a secret must hold
	maxSecrets = 2  // lines of a secret file
)

// readSecrets returns the secrets in file, one a line, in base64. The first is
// the one to use; a second is accepted as well, so that a mesh can change its
// secret one restart at a time. Where the file is absent and create is set it
// makes one, since a founder has nobody to ask.
func readSecrets(file string, create bool) ([][]byte, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && create {
		secret, err := makeSecret(file)
		return [][]byte{secret}, err
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("secret file %s does not exist: copy mesh.secret from the data folder of a member, and name it with --secret-file", file)
	}
	if err != nil {
		return nil, fmt.Errorf("secret file: %w", err)
	}
	secrets, err := parseSecrets(string(b))
	if err != nil {
		return nil, fmt.Errorf("secret file %s %w", file, err)
	}
	return secrets, nil
}

// parseSecrets reads what a secret file holds. An error goes on after the name
// of the file, and repeats nothing of what the file says.
func parseSecrets(text string) ([][]byte, error) {
	var secrets [][]byte
	for i, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		secret, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			return nil, fmt.Errorf("is not base64 in line %d", i+1)
		}
		if len(secret) < minSecret {
			return nil, fmt.Errorf("holds %d bytes in line %d; at least %d random bytes are needed (head -c 32 /dev/urandom | base64)", len(secret), i+1, minSecret)
		}
		secrets = append(secrets, secret)
	}
	switch {
	case len(secrets) == 0:
		return nil, fmt.Errorf("is empty; at least %d random bytes are needed (head -c 32 /dev/urandom | base64)", minSecret)
	case len(secrets) > maxSecrets:
		return nil, fmt.Errorf("holds %d secrets; two at most, the one to use and another that is accepted", len(secrets))
	case len(secrets) == maxSecrets && bytes.Equal(secrets[0], secrets[1]):
		return nil, errors.New("holds one secret twice; the second line is for another that is accepted")
	}
	return secrets, nil
}

func makeSecret(file string) ([]byte, error) {
	secret := make([]byte, minSecret)
	rand.Read(secret)
	text := base64.StdEncoding.EncodeToString(secret) + "\n"
	if err := writeFile(file, []byte(text)); err != nil {
		return nil, fmt.Errorf("secret file: %w", err)
	}
	return secret, nil
}
