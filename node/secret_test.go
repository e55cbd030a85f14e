package node

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// secretLine is a secret of so many equal bytes, as a line of a file.
func secretLine(b byte, size int) string {
	return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, size))
}

func TestReadSecrets(t *testing.T) {
	one, two, three := secretLine(1, 32), secretLine(2, 48), secretLine(3, 32)
	for _, row := range []struct {
		name string
		text string
		want string // first byte of each secret
		err  string
	}{
		{"one", one + "\n", "\x01", ""},
		{"one without a line end", one, "\x01", ""},
		{"two in their order", two + "\n" + one + "\n", "\x02\x01", ""},
		{"two with empty lines and Windows' line ends", "\r\n" + one + "\r\n\r\n" + two + "\r\n", "\x01\x02", ""},
		{"none", "\n \n", "", "is empty"},
		{"three", one + "\n" + two + "\n" + three, "", "3 secrets"},
		{"one twice", one + "\n" + one, "", "twice"},
		{"a short one", secretLine(1, 31), "", "31 bytes in line 1; at least 32"},
		{"a short second one", one + "\n" + secretLine(1, 31), "", "31 bytes in line 2"},
		{"no base64", one + "\n\nold secret!\n", "", "not base64 in line 3"},
		{"two on one line", one + " " + two, "", "not base64 in line 1"},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(file, []byte(row.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readSecrets(file, true)
			first := ""
			for _, secret := range got {
				first += string(secret[:1])
			}
			if first != row.want || (err == nil) != (row.err == "") {
				t.Fatalf("secrets that begin with %q, error %v; want %q, %q", first, err, row.want, row.err)
			}
			if err == nil {
				return
			}
			if text := err.Error(); !strings.Contains(text, row.err) || !strings.Contains(text, file) || strings.Contains(text, one) || strings.Contains(text, "old secret") {
				t.Errorf("error %q, want one that says %q, names the file and repeats none of it", text, row.err)
			}
		})
	}
}

// TestNeighbouringSecrets: nodes, and operators, one step of a change of the
// secret apart trust each other both ways; those that are further apart do not.
func TestNeighbouringSecrets(t *testing.T) {
	before, after := secretLine(1, 32), secretLine(2, 32)
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	type party struct {
		*trust
		token string
	}
	at := func(lines ...string) party {
		file := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		secrets, err := readSecrets(file, false)
		if err != nil {
			t.Fatal(err)
		}
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		trust, err := newTrust(secrets, newUUID(), key)
		if err != nil {
			t.Fatal(err)
		}
		token, err := OperatorToken(file, now)
		if err != nil {
			t.Fatal(err)
		}
		return party{trust, token}
	}
	steps := []party{at(before), at(before, after), at(after, before), at(after)}
	for i, a := range steps {
		for j, b := range steps {
			// What b uses is its first line; a accepts both of its own.
			want := i == 1 || i == 2 || i/2 == j/2
			cert, err := x509.ParseCertificate(b.cert.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.verify(cert); (err == nil) != want {
				t.Errorf("a certificate of step %d at step %d: %v, want good %v", j, i, err, want)
			}
			if err := a.checkToken(b.token, now); (err == nil) != want {
				t.Errorf("a token of step %d at step %d: %v, want good %v", j, i, err, want)
			}
			if got := slices.ContainsFunc(a.gossipKeys(), func(k []byte) bool { return bytes.Equal(k, b.gossipKeys()[0]) }); got != want {
				t.Errorf("gossip of step %d at step %d is read: %v, want %v", j, i, got, want)
			}
		}
	}
}
