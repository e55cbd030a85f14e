package metadata

import (
	"encoding/binary"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// verdict is what an entry came to. Receipts hold it, and every replica the
// same, so it is a number here and becomes words only on the way out: words
// change with versions.
type verdict byte

const (
	done verdict = iota // numbers are for ever; append only
	badName
	badTag
	badDigest
	badSize
	badRequest
	tooLarge
	noBlob
	noManifest
	blobsMissing
	nameTaken
	keyDiffers
	idBuried
	alreadyFounded
	notMember
	lastOwner
	notLaterEpoch
	levelTooLow
	usedSince
	othersDrain
	badSetting
	settingDiffers
	settingsFull
	tagImmutable
	tagsDiffer
	namedLate
)

// decision is a verdict with what the client is told beside it.
type decision struct {
	verdict verdict
	size    int64  // of the blob, where a link was made; of the names that went, where some expired
	missing []sum  // the first few, where blobs are missing
	tag     string // where it is immutable
}

// maxMissing bounds the list of missing blobs in an answer and its receipt.
const maxMissing = 32

func (d decision) result() *applyResult {
	r := &applyResult{size: d.size}
	switch d.verdict {
	case done:
	case badName:
		r.err = oci.ErrNameInvalid
	case badTag:
		r.err = oci.ErrTagInvalid
	case badDigest:
		r.err = oci.ErrDigestInvalid
	case badSize:
		r.err = oci.ErrSizeInvalid
	case badRequest:
		r.err = oci.ErrDenied.Because("malformed request")
	case tooLarge:
		r.err = oci.ErrManifestTooLarge
	case noBlob:
		r.err = oci.ErrBlobUnknown
	case noManifest:
		r.err = oci.ErrManifestUnknown
	case blobsMissing:
		missing := make([]string, len(d.missing))
		for i, m := range d.missing {
			missing[i] = string(sumDigest([]byte(m)))
		}
		r.err = oci.ErrManifestBlobUnknown.WithDetail(missing)
	case nameTaken:
		r.err = oci.ErrDenied.Because("name taken: another member has this name")
	case keyDiffers:
		r.err = oci.ErrDenied.Because("this member's id belongs to another key")
	case idBuried:
		r.err = oci.ErrDenied.Because("this member was removed; its id cannot return")
	case alreadyFounded:
		r.err = oci.ErrDenied.Because("this mesh was founded before")
	case notMember:
		r.err = oci.ErrDenied.Because("no member has this id")
	case lastOwner:
		r.err = oci.ErrDenied.Because("no other member would own blobs")
	case notLaterEpoch:
		r.err = oci.ErrDenied.Because("another recovery came first")
	case levelTooLow:
		r.err = oci.ErrDenied.Because("every member runs a later version of flotilla: upgrade this node")
	case usedSince:
		r.err = oci.ErrDenied.Because("the blob was used meanwhile")
	case othersDrain:
		r.err = oci.ErrDenied.Because("no other member owns blobs, and some are draining: take that back for one of them first")
	case badSetting:
		r.err = oci.ErrDenied.Because("malformed settings: a key is 1 to %d printable characters, a value at most %d bytes, all of one change %d", maxSettingKey, maxSetting, maxChange)
	case settingDiffers, tagsDiffer:
		r.err = oci.ErrConflict
	case settingsFull:
		r.err = oci.ErrDenied.Because("a mesh keeps %d settings at most, of %d bytes together", maxSettings, maxSettingBytes)
	case tagImmutable:
		r.err = oci.ErrDenied.Because("tag %s is immutable", d.tag)
	case namedLate:
		r.err = oci.ErrOverdue
	default: // a newer node's, in a snapshot
		r.err = oci.ErrDenied.Because("refused")
	}
	return r
}

// receipt remembers the decision of a request, so that a retry gets it again.
type receipt struct {
	index uint64
	at    int64 // log time
	decision
}

func (r receipt) encode() []byte {
	b := binary.AppendUvarint(nil, r.index)
	b = binary.AppendUvarint(b, uint64(r.at))
	b = binary.AppendUvarint(b, uint64(r.verdict))
	b = binary.AppendUvarint(b, uint64(r.size))
	if r.verdict == tagImmutable {
		return append(b, r.tag...)
	}
	for _, d := range r.missing {
		b = append(b, d...)
	}
	return b
}

func decodeReceipt(b []byte) (receipt, error) {
	f := fields{b: b}
	r := receipt{index: f.uint(), at: f.int()}
	r.verdict = verdict(f.uint())
	r.size = f.int()
	if r.verdict == tagImmutable {
		r.tag = string(f.b)
		return r, f.err()
	}
	r.missing = f.sums()
	return r, f.err()
}
