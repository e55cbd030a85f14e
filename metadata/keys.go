package metadata

import (
	"encoding/hex"
	"strings"

	"github.com/opencontainers/go-digest"
)

// The layout of the state. All of it is replicated: two replicas that have
// applied the same entries hold the same bytes.
//
//	key                                        value                        what it is for
//	0x01                                       progress                     last command applied, log time
//	0x02                                       Cluster                      identity and settings of the mesh
//	0x03 uuid                                  member                       members, and the buried
//	0x04 request id                            receipt                      what became of a request
//	0x05 key                                   setting                      what others keep here, such as accounts (level 3)
//	0x10 repo 00 'g' manifest tag              -                            tags of a manifest
//	0x10 repo 00 'l' blob                      link                         blobs of a repository
//	0x10 repo 00 'm' manifest                  manifest                     manifests of a repository
//	0x10 repo 00 's' subject manifest          referrer                     referrers of a subject
//	0x10 repo 00 't' tag                       digest                       tags, in byte order
//	0x10 repo 00 'u' manifest                  log time                     manifests without a tag, and since when (level 2)
//	0x20 digest 'l' repo                       -                            repositories that link a blob
//	0x20 digest 'm' repo 00 manifest           -                            manifests that name these bytes
//	0x20 digest 'p' repo                       link                         repositories whose manifest of this digest is placed as a blob (level 2)
//	0x20 digest 'x'                            log time                     no member holds these bytes any more, and since when
//
// A repository's keys are neighbours, so that the catalogue is one seek per
// repository. It exists as long as it has any key. Everything that needs a
// digest's bytes is under one prefix, 0x20 digest, the manifest itself
// included; 'x' stands there only beside an 'l' or a 'p'. Names hold no byte below '-', so 0x00 ends them without changing
// their order. Digests are an algorithm byte and the raw hash: fixed in length
// by the first byte, and in the order of their text.
const (
	keyProgress = 0x01
	keyCluster  = 0x02
	keyMember   = 0x03
	keyReceipt  = 0x04
	keySetting  = 0x05
	keyRepo     = 0x10
	keyBytes    = 0x20

	kindTagOf    = 'g'
	kindLink     = 'l'
	kindManifest = 'm'
	kindReferrer = 's'
	kindTag      = 't'
	kindUntagged = 'u'
	kindPlaced   = 'p'
	kindLost     = 'x'
)

// Limits on what becomes part of a key. They are part of the rules of Apply.
const (
	maxRepo = 255
	maxTag  = 128
	maxID   = 128 // request and member ids

	maxKey = 1 + maxRepo + 2 + 2*65 + maxTag // bounds every key above
)

// sum is a digest as keys and records hold it. The zero value is no digest.
type sum string

const (
	algSHA256 = 1
	algSHA512 = 2
)

// appendSum appends the sum of a digest's text. Anything but a canonical
// sha256 or sha512 digest is refused.
func appendSum(b []byte, d string) (_ []byte, ok bool) {
	alg, hash, _ := strings.Cut(d, ":")
	switch {
	case alg == "sha256" && len(hash) == 64:
		b = append(b, algSHA256)
	case alg == "sha512" && len(hash) == 128:
		b = append(b, algSHA512)
	default:
		return b, false
	}
	for i := 0; i < len(hash); i += 2 {
		hi, lo := unhex(hash[i]), unhex(hash[i+1])
		if hi > 15 || lo > 15 {
			return b, false
		}
		b = append(b, hi<<4|lo)
	}
	return b, true
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

func parseSum(d string) (sum, bool) {
	b, ok := appendSum(make([]byte, 0, 65), d)
	return sum(b), ok
}

// sumLen returns the length of the sum that b starts with, or 0.
func sumLen(b []byte) int {
	n := 0
	if len(b) > 0 {
		switch b[0] {
		case algSHA256:
			n = 33
		case algSHA512:
			n = 65
		}
	}
	if n > len(b) {
		return 0
	}
	return n
}

// sumDigest returns the text of a sum; b must be one whole sum, or the answer
// is "".
func sumDigest(b []byte) digest.Digest {
	if n := sumLen(b); n == 0 || n != len(b) {
		return ""
	}
	text := make([]byte, 7, 7+128)
	copy(text, "sha256:")
	if b[0] == algSHA512 {
		copy(text, "sha512:")
	}
	return digest.Digest(hex.AppendEncode(text, b[1:]))
}

// validName reports whether s may stand in a key. The grammar of names and
// tags is api/oci's affair and was checked before the entry was proposed; here
// it matters only that no name can be mistaken for two.
func validName(s string, most int) bool {
	if s == "" || len(s) > most {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' {
			return false
		}
	}
	return true
}

// repoPrefix returns what every key of a repository starts with.
func repoPrefix(repo string) []byte {
	k := make([]byte, 0, len(repo)+2)
	k = append(k, keyRepo)
	k = append(k, repo...)
	return append(k, 0)
}

// repoKey returns the key, or prefix of keys, of one kind in a repository.
func repoKey(repo string, kind byte, rest ...string) []byte {
	n := len(repo) + 3
	for _, r := range rest {
		n += len(r)
	}
	k := make([]byte, 0, n)
	k = append(k, keyRepo)
	k = append(k, repo...)
	k = append(k, 0, kind)
	for _, r := range rest {
		k = append(k, r...)
	}
	return k
}

// repoDigestKey is repoKey for a digest that need not be valid.
func repoDigestKey(repo string, kind byte, d digest.Digest) ([]byte, bool) {
	k := make([]byte, 0, len(repo)+3+65)
	k = append(k, keyRepo)
	k = append(k, repo...)
	k = append(k, 0, kind)
	return appendSum(k, string(d))
}

// linkedIn is the key, or prefix with repo "", that says which repositories
// link a blob.
func linkedIn(d sum, repo string) []byte { return bytesKey(d, kindLink, repo) }

// placedIn is the key, or prefix with repo "", that says which repositories
// hold a manifest of this digest whose body is a blob.
func placedIn(d sum, repo string) []byte { return bytesKey(d, kindPlaced, repo) }

func lostKey(d sum) []byte { return bytesKey(d, kindLost, "") }

func bytesKey(d sum, kind byte, repo string) []byte {
	k := make([]byte, 0, len(d)+len(repo)+2)
	k = append(k, keyBytes)
	k = append(k, d...)
	k = append(k, kind)
	return append(k, repo...)
}

// namedBy is the key, or prefix with manifest "", that says which manifests of
// a repository name some bytes.
func namedBy(d sum, repo string, manifest sum) []byte {
	k := make([]byte, 0, len(d)+len(repo)+len(manifest)+3)
	k = append(k, keyBytes)
	k = append(k, d...)
	k = append(k, kindManifest)
	k = append(k, repo...)
	k = append(k, 0)
	return append(k, manifest...)
}

func memberKey(id string) []byte   { return append([]byte{keyMember}, id...) }
func receiptKey(id string) []byte  { return append([]byte{keyReceipt}, id...) }
func settingKey(key string) []byte { return append([]byte{keySetting}, key...) }

// after returns the first key beyond all that start with prefix; nil is the
// end of all keys.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
