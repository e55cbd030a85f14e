package bench

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

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const octets = "Content-Type: application/octet-stream"

// repository is one repository of one target, with the ledger of what is in it.
// Workers share it and bring their sessions.
type repository struct {
	name   string // with the target's space before it
	ledger *ledger
}

func (r repository) url(s *session, kind, reference string) *url.URL {
	u := *s.base
	u.User = nil
	u.Path = "/v2/" + r.name + "/" + kind + "/" + reference
	return &u
}

func (r repository) begin(ctx context.Context, s *session) (answer, *url.URL, error) {
	a, err := s.do(ctx, request{method: http.MethodPost, url: r.url(s, "blobs", "uploads/"), want: 202})
	if err != nil {
		return a, nil, err
	}
	at, err := a.location()
	return a, at, err
}

func (r repository) finish(ctx context.Context, s *session, at *url.URL, b blob, data []byte) error {
	end := *at
	q := end.Query()
	q.Set("digest", b.digest.String())
	end.RawQuery = q.Encode()
	rq := request{method: http.MethodPut, url: &end, want: 201, body: data}
	if data != nil {
		rq.header = []string{octets}
	}
	_, err := s.do(ctx, rq)
	return err
}

// push uploads a blob whole: POST, PUT.
func (r repository) push(ctx context.Context, s *session, b blob) error {
	_, at, err := r.begin(ctx, s)
	if err != nil {
		return err
	}
	r.ledger.blob(r.name, b.digest)
	if err := r.finish(ctx, s, at, b, b.data); err != nil {
		r.ledger.upload(r.name, at)
		return err
	}
	return nil
}

// pushChunked uploads a blob in pieces: POST, PATCH for each, PUT.
func (r repository) pushChunked(ctx context.Context, s *session, b blob, chunk int64) error {
	a, at, err := r.begin(ctx, s)
	if err != nil {
		return err
	}
	if least, err := strconv.ParseInt(a.header.Get("OCI-Chunk-Min-Length"), 10, 64); err == nil {
		chunk = max(chunk, least)
	}
	r.ledger.blob(r.name, b.digest)
	for off := int64(0); off < b.size && err == nil; off += chunk {
		end := min(off+chunk, b.size)
		a, err = s.do(ctx, request{
			method: http.MethodPatch, url: at, want: 202, body: b.data[off:end],
			header: []string{octets, fmt.Sprintf("Content-Range: %d-%d", off, end-1)},
		})
		if err == nil {
			at, err = next(a, at)
		}
	}
	if err == nil {
		err = r.finish(ctx, s, at, b, nil)
	}
	if err != nil {
		r.ledger.upload(r.name, at)
	}
	return err
}

// next is where an upload goes on; the last address stays good for cancelling.
func next(a answer, last *url.URL) (*url.URL, error) {
	at, err := a.location()
	if err != nil {
		return last, err
	}
	return at, nil
}

// pull reads a whole blob, and checks its digest if told so.
func (r repository) pull(ctx context.Context, s *session, b blob, check bool) error {
	return r.read(ctx, s, request{method: http.MethodGet, url: r.url(s, "blobs", b.digest.String()), want: 200}, b, check)
}

// pullManifest reads the manifest at tag, which must be m, and checks its digest.
func (r repository) pullManifest(ctx context.Context, s *session, tag string, m blob) error {
	rq := request{method: http.MethodGet, url: r.url(s, "manifests", tag), want: 200, header: acceptManifest()}
	return r.read(ctx, s, rq, m, true)
}

func (r repository) read(ctx context.Context, s *session, rq request, b blob, check bool) error {
	var hash digest.Digester
	if check {
		hash = b.digest.Algorithm().Digester()
		rq.sink = hash.Hash()
	}
	a, err := s.do(ctx, rq)
	if err != nil {
		return err
	}
	if a.size != b.size {
		return fmt.Errorf("GET %s: %d bytes instead of %d", rq.url.Path, a.size, b.size)
	}
	if check && hash.Digest() != b.digest {
		return fmt.Errorf("GET %s: other bytes than were pushed", rq.url.Path)
	}
	return nil
}

func (r repository) pullRange(ctx context.Context, s *session, b blob, off, n int64) error {
	a, err := s.do(ctx, request{
		method: http.MethodGet, url: r.url(s, "blobs", b.digest.String()), want: 206,
		header: []string{fmt.Sprintf("Range: bytes=%d-%d", off, off+n-1)},
	})
	if err == nil && a.size != n {
		err = fmt.Errorf("GET %s: a range of %d bytes instead of %d", a.url.Path, a.size, n)
	}
	return err
}

// headBlob asks for a blob; want is the status that must come.
func (r repository) headBlob(ctx context.Context, s *session, d digest.Digest, want int) error {
	_, err := s.do(ctx, request{method: http.MethodHead, url: r.url(s, "blobs", d.String()), want: want})
	return err
}

func acceptManifest() []string { return []string{"Accept: " + v1.MediaTypeImageManifest} }

// getManifest asks for the manifest at tag by GET or HEAD; a body must have size bytes.
func (r repository) getManifest(ctx context.Context, s *session, method, tag string, size int64) error {
	a, err := s.do(ctx, request{method: method, url: r.url(s, "manifests", tag), want: 200, header: acceptManifest()})
	if err == nil && method == http.MethodGet && a.size != size {
		err = fmt.Errorf("GET %s: %d bytes instead of %d", a.url.Path, a.size, size)
	}
	return err
}

// putManifest writes a manifest under a tag. The caller enters the tag in the
// ledger, since it may be there.
func (r repository) putManifest(ctx context.Context, s *session, tag string, body []byte) error {
	r.ledger.manifest(r.name, digest.FromBytes(body))
	_, err := s.do(ctx, request{
		method: http.MethodPut, url: r.url(s, "manifests", tag), want: 201, body: body,
		header: []string{"Content-Type: " + v1.MediaTypeImageManifest},
	})
	return err
}

// putTags writes a manifest with several tags in one request and reports how
// many of them the registry understood: none, if it does not know the parameter.
func (r repository) putTags(ctx context.Context, s *session, tags []string, body []byte) (int, error) {
	d := digest.FromBytes(body)
	r.ledger.manifest(r.name, d)
	u := r.url(s, "manifests", d.String())
	u.RawQuery = url.Values{"tag": tags}.Encode()
	a, err := s.do(ctx, request{
		method: http.MethodPut, url: u, want: 201, body: body,
		header: []string{"Content-Type: " + v1.MediaTypeImageManifest},
	})
	return len(a.header.Values("OCI-Tag")), err
}

// listTags walks the whole list and returns the number of tags.
func (r repository) listTags(ctx context.Context, s *session, page int) (int, error) {
	total, last := 0, ""
	at := r.url(s, "tags", "list")
	at.RawQuery = "n=" + strconv.Itoa(page)
	for {
		var body strings.Builder
		a, err := s.do(ctx, request{method: http.MethodGet, url: at, want: 200, sink: &body})
		if err != nil {
			return total, err
		}
		var list struct {
			Tags []string `json:"tags"`
		}
		if err := json.NewDecoder(strings.NewReader(body.String())).Decode(&list); err != nil {
			return total, fmt.Errorf("GET %s: %w", at.Path, err)
		}
		total += len(list.Tags)
		if n := len(list.Tags); n > 0 {
			if list.Tags[0] <= last {
				return total, fmt.Errorf("GET %s: the list starts over at %s", at.Path, list.Tags[0])
			}
			last = list.Tags[n-1]
		}
		link := a.header.Get("Link")
		if link == "" {
			return total, nil
		}
		if at, err = nextPage(a.url, link); err != nil || len(list.Tags) == 0 {
			return total, errors.Join(err, fmt.Errorf("the tag list has no end: Link %q", link))
		}
	}
}

// nextPage reads a Link header (RFC 8288) as the specification has registries
// send it: one link, in angle brackets.
func nextPage(from *url.URL, link string) (*url.URL, error) {
	_, rest, ok := strings.Cut(link, "<")
	target, _, closed := strings.Cut(rest, ">")
	if !ok || !closed {
		return nil, fmt.Errorf("no address in Link %q", link)
	}
	return from.Parse(target)
}

// ping asks whether there is a registry that takes these credentials.
func ping(ctx context.Context, s *session) error {
	u := *s.base
	u.User = nil
	u.Path = "/v2/"
	_, err := s.do(ctx, request{method: http.MethodGet, url: &u, want: 200, sink: io.Discard})
	return err
}
