package mesh

import (
	"context"
	"encoding/hex"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// maxQuestion is how many blobs one node asks another about at once, and so
// bounds the work that one question makes: as many looks at the disk.
const maxQuestion = 1000

// maxQuestionBytes is the longest question there is.
const maxQuestionBytes = maxQuestion * 65

// underMembership is the parameter that turns a question into a request for
// confirmations: the fingerprint of the membership by which the asker decides.
const underMembership = "under"

// holdings asks a member which of ds it holds durably. With the fingerprint of
// a membership it asks for more, see confirmer: what is confirmed stays while the
// asker gives up its own copy.
func (b *Blobs) holdings(ctx context.Context, node string, ds []digest.Digest, membership string) ([]bool, error) {
	body, err := packDigests(ds)
	if err != nil {
		return nil, err
	}
	path, wait := "/blobs/holdings", b.patience.Answer
	if membership != "" {
		// The first mark in a folder after a start syncs the folder.
		path, wait = path+"?"+underMembership+"="+url.QueryEscape(membership), b.patience.Stall
	}
	answer, err := b.call(ctx, wait, http.MethodPost, node, path, body)
	if err != nil {
		return nil, err
	}
	if len(answer) != (len(ds)+7)/8 {
		return nil, oci.ErrUnavailable.Because("%d bytes answer a question about %d blobs", len(answer), len(ds))
	}
	held := make([]bool, len(ds))
	for i := range held {
		held[i] = answer[i/8]>>(i%8)&1 == 1
	}
	return held, nil
}

// serveHoldings answers with a bit for each digest of the question.
func (b *Blobs) serveHoldings(w http.ResponseWriter, r *http.Request) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxQuestionBytes))
	if err != nil {
		return oci.ErrSizeInvalid.Wrap(err)
	}
	ds, err := unpackDigests(body)
	if err != nil {
		return err
	}
	yes := b.local.Has
	if membership := r.URL.Query().Get(underMembership); membership != "" {
		if yes, err = b.confirmer(membership, ds); err != nil {
			return err
		}
	}
	answer := make([]byte, (len(ds)+7)/8)
	for i, d := range ds {
		if err := r.Context().Err(); err != nil {
			return oci.ErrUnavailable.Wrap(err)
		}
		if yes(d) {
			answer[i/8] |= 1 << (i % 8)
		}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write(answer) // who does not read it has gone
	return nil
}

// confirmer vouches for this node's copies of ds to a member that wants to give
// up its own. Only an owner may, or the keeper where the zone pins the blob,
// under the membership by which the asker decides: else two nodes that both need
// not hold a blob could each rely on the other. What is confirmed is marked used,
// so that a decision to drop it here, made before and not yet carried out, comes
// to nothing.
func (b *Blobs) confirmer(membership string, ds []digest.Digest) (func(digest.Digest) bool, error) {
	r := b.members.Ring()
	if r.Fingerprint() != membership {
		return func(digest.Digest) bool { return false }, nil
	}
	kept, err := b.kept(r, ds)
	if err != nil {
		return nil, err
	}
	return func(d digest.Digest) bool {
		if !kept[d] && !owns(r.Owners(d), b.id) {
			return false
		}
		_, held := b.local.Touch(d)
		return held
	}, nil
}

// algorithms are the digest algorithms by the byte that stands for them in a
// question. A digest there is that byte and the bare sum.
var algorithms = [...]digest.Algorithm{1: digest.SHA256, 2: digest.SHA512}

func packDigests(ds []digest.Digest) ([]byte, error) {
	out := make([]byte, 0, len(ds)*33)
	for _, d := range ds {
		name, sum, _ := strings.Cut(string(d), ":")
		code := slices.Index(algorithms[:], digest.Algorithm(name))
		if code < 1 || len(sum) != 2*algorithms[code].Size() {
			return nil, oci.ErrDigestInvalid
		}
		var err error
		if out, err = hex.AppendDecode(append(out, byte(code)), []byte(sum)); err != nil {
			return nil, oci.ErrDigestInvalid.Wrap(err)
		}
	}
	return out, nil
}

func unpackDigests(b []byte) ([]digest.Digest, error) {
	var ds []digest.Digest
	for len(b) > 0 {
		code := int(b[0])
		if code < 1 || code >= len(algorithms) || len(b) <= algorithms[code].Size() || len(ds) == maxQuestion {
			return nil, oci.ErrDigestInvalid
		}
		end := 1 + algorithms[code].Size()
		ds = append(ds, digest.NewDigestFromBytes(algorithms[code], b[1:end]))
		b = b[end:]
	}
	return ds, nil
}
