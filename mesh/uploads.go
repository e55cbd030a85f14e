package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// progress is a home's answer to a request that another node passed on.
type progress struct {
	Size int64 `json:"size"`
}

// Start opens an upload whose home is this node. Its id names the home, and
// nothing else in the mesh knows of it.
func (b *Blobs) Start(ctx context.Context, repo string, alg digest.Algorithm) (string, error) {
	id, err := b.local.Start(ctx, repo, alg)
	if err != nil {
		return "", err
	}
	return id + "." + b.id, nil
}

// Append adds what r holds to the upload, at its home.
func (b *Blobs) Append(ctx context.Context, u oci.Upload, off int64, r io.Reader) (int64, error) {
	home, err := b.homeOf(u)
	if err != nil {
		return 0, err
	}
	if home.here {
		return b.local.Append(ctx, home.Upload, off, r)
	}
	return b.forward(ctx, http.MethodPatch, home, url.Values{"off": {strconv.FormatInt(off, 10)}}, r)
}

// Size returns how many bytes of the upload have arrived.
func (b *Blobs) Size(ctx context.Context, u oci.Upload) (int64, error) {
	home, err := b.homeOf(u)
	if err != nil {
		return 0, err
	}
	if home.here {
		return b.local.Size(ctx, home.Upload)
	}
	return b.forward(ctx, http.MethodGet, home, nil, nil)
}

// Finish adds what r holds, makes the whole the blob d and places it. Where
// too few copies can be made now, the upload is finished all the same, and the
// same Finish again goes on with the placing.
func (b *Blobs) Finish(ctx context.Context, u oci.Upload, off int64, r io.Reader, d digest.Digest) (int64, error) {
	home, err := b.homeOf(u)
	if err != nil {
		return 0, err
	}
	if home.here {
		return b.finish(ctx, home.Upload, off, r, d)
	}
	query := url.Values{"off": {strconv.FormatInt(off, 10)}, "digest": {d.String()}}
	return b.forward(ctx, http.MethodPut, home, query, r)
}

func (b *Blobs) finish(ctx context.Context, u oci.Upload, off int64, r io.Reader, d digest.Digest) (int64, error) {
	size, err := b.local.Finish(ctx, u, off, r, d)
	if err != nil {
		return 0, err
	}
	return size, b.place(ctx, d)
}

// Cancel gives the upload up.
func (b *Blobs) Cancel(ctx context.Context, u oci.Upload) error {
	home, err := b.homeOf(u)
	if err != nil {
		return err
	}
	if home.here {
		return b.local.Cancel(ctx, home.Upload)
	}
	_, err = b.forward(ctx, http.MethodDelete, home, nil, nil)
	return err
}

// home is where an upload lives, and its name there.
type home struct {
	oci.Upload
	node string
	here bool
}

// homeOf finds the home that the id names. An upload goes down with its home:
// the client starts again elsewhere, at once.
func (b *Blobs) homeOf(u oci.Upload) (home, error) {
	i := strings.LastIndexByte(u.ID, '.')
	if i < 1 || strings.Trim(u.ID[:i], "0123456789abcdef-") != "" {
		return home{}, oci.ErrUploadUnknown
	}
	h := home{Upload: oci.Upload{Repo: u.Repo, ID: u.ID[:i]}, node: u.ID[i+1:]}
	h.here = h.node == b.id
	if h.here {
		return h, nil
	}
	// What a client wrote becomes the host of a URL only as a member's id.
	if _, member := b.members.Ring().Node(h.node); !member {
		return home{}, oci.ErrUploadUnknown
	}
	if b.members.Down(h.node) {
		return home{}, oci.ErrUploadUnknown.Because("the node that held it is down")
	}
	return h, nil
}

// forward passes a request on to the upload's home, body (nil for none)
// included, and returns the size that the home answers.
func (b *Blobs) forward(ctx context.Context, method string, h home, query url.Values, body io.Reader) (int64, error) {
	b.stats.forwarded.Add(1)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if query == nil {
		query = url.Values{}
	}
	query.Set("repo", h.Repo)
	to := "https://" + h.node + "/uploads/" + url.PathEscape(h.ID) + "?" + query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, to, nil)
	if err != nil {
		return 0, oci.ErrUploadUnknown.Wrap(err)
	}
	size, stall, answer := int64(0), b.patience.Answer, time.Nanosecond // by the first look after stall
	if method == http.MethodPut {
		// Answered once the home has placed the blob, which takes as long as
		// it takes while the home is up.
		answer = 0
	}
	if body != nil {
		size, stall, answer = -1, b.patience.Stall, 0
	}
	out := newOutgoing(body, limits{stall: stall, answer: answer, down: func() bool { return b.members.Down(h.node) }}, cancel)
	out.tally = b.announce(req.Header, h.node, CausePush)
	resp, err := b.do(req, out, size)
	_, broken := out.end()
	if err != nil {
		return 0, b.lost(h, err, broken)
	}
	return answered(resp)
}

// lost says whose fault it is that a home did not answer. The home keeps what
// it received in any case.
func (b *Blobs) lost(h home, err, broken error) error {
	if broken != nil {
		return oci.ErrUploadInvalid.Because("the body ended early").Wrap(broken)
	}
	if errors.Is(err, context.Canceled) { // the client has gone
		return oci.ErrUploadInvalid.Wrap(err)
	}
	return oci.ErrUnavailable.Because("the node that holds the upload does not answer").Wrap(fmt.Errorf("node %s: %w", h.node, err))
}

func answered(resp *http.Response) (int64, error) {
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, decode(resp)
	}
	var p progress
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&p); err != nil {
		return 0, oci.ErrUnavailable.Wrap(err)
	}
	return p.Size, nil
}
