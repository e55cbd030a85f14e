package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// mayFill is the header by which a client's node allows its gateway to start
// a download. Nobody passes it on, so nothing loops.
const mayFill = "Flotilla-May-Fill"

// forRepair is the header that tells a repair from a download that a client
// waits for.
const forRepair = "Flotilla-Repair"

// inLine is the header by which a node that has nothing of a blob yet says its
// place in the line: whoever is before it lets it wait for the first byte.
const inLine = "Flotilla-Place"

// avoidance is how long a node that gave no answer is asked last.
const avoidance = 5 * time.Second

// question is what one node asks another about a blob.
type question struct {
	node    string
	digest  digest.Digest
	off     int64
	end     int64 // 0 for that of the blob
	gateway bool  // it may start a download
	repair  bool  // no client waits
	cause   Cause // what its bytes are for
	place   int64 // of the asker in the line, if it has one
}

// ask asks one node for a blob, or (HEAD) whether it has more of it than off.
// The wait for the answer's header has a bound, the body has none: silence is
// the business of whoever reads it. A node that lacks the blob is
// ErrBlobUnknown, everything else means that it cannot serve now.
func (b *Blobs) ask(ctx context.Context, method string, q question) (io.ReadCloser, int64, error) {
	body, size, err := b.exchange(ctx, method, q)
	switch {
	case err == nil:
		b.stats.served.Add(1)
	case errors.Is(err, oci.ErrBlobUnknown):
		b.stats.denied.Add(1)
	case ctx.Err() == nil:
		b.stats.failed.Add(1)
		if answered := (*oci.Error)(nil); !errors.As(err, &answered) {
			b.silent.Store(q.node, time.Now())
		}
	}
	return body, size, err
}

// avoids reports whether a node gave no answer just now. Gossip needs longer to
// see that it is down, and an image is many blobs.
func (b *Blobs) avoids(node string) bool {
	at, ok := b.silent.Load(node)
	return ok && time.Since(at.(time.Time)) < avoidance
}

// waits reports whether who is asked may have to ask others first. It shows
// meanwhile that it is alive, see stayAlive.
func (q question) waits() bool { return q.gateway || q.place > 0 && q.off == 0 }

// last is the last byte asked for, of a blob of this size.
func (q question) last(size int64) int64 {
	if q.end > 0 {
		return min(q.end, size) - 1
	}
	return size - 1
}

func (b *Blobs) exchange(ctx context.Context, method string, q question) (io.ReadCloser, int64, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(b.patience.Answer, func() { cancel(errNoAnswer) })
	last := time.Now().Add(b.patience.Gateway)
	alive := func(int, textproto.MIMEHeader) error {
		late.Reset(min(b.patience.Answer, time.Until(last)))
		return nil
	}
	resp, err := b.sendQuestion(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: alive}), method, q)
	if !late.Stop() && err == nil { // cancelled under the response
		_ = resp.Body.Close()
		err = errNoAnswer
	}
	var size int64
	if err == nil {
		if size, err = blobSize(resp, q); err != nil || method == http.MethodHead {
			_ = resp.Body.Close()
		}
	}
	if err != nil || method == http.MethodHead {
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, size, err
	}
	return &incoming{ReadCloser: resp.Body, cancel: cancel, count: &b.stats.bytesFrom}, size, nil
}

func (b *Blobs) sendQuestion(ctx context.Context, method string, q question) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+q.node+"/blobs/"+q.digest.String(), nil)
	if err != nil {
		return nil, err
	}
	switch {
	case q.end > 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", q.off, q.end-1))
	case q.off > 0:
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", q.off))
	}
	if q.gateway {
		req.Header.Set(mayFill, "1")
	}
	if q.repair {
		req.Header.Set(forRepair, string(q.cause))
	}
	if q.cause != "" {
		b.announce(req.Header, q.node, q.cause)
	}
	if q.place > 0 {
		req.Header.Set(inLine, strconv.FormatInt(q.place, 10))
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusPartialContent {
		defer resp.Body.Close()
		if method == http.MethodHead && resp.StatusCode == http.StatusNotFound && resp.Header.Get(denial) != "" {
			return nil, oci.ErrBlobUnknown
		}
		return nil, decode(resp)
	}
	return resp, nil
}

// readQuestion reads what sendQuestion wrote.
func readQuestion(r *http.Request) (q question, err error) {
	if q.digest, err = oci.ParseDigest(r.PathValue("digest")); err != nil {
		return q, err
	}
	if q.off, q.end, err = parseRange(r.Header.Get("Range")); err != nil {
		return q, err
	}
	if q.place, err = parsePlace(r.Header.Get(inLine)); err != nil {
		return q, err
	}
	q.gateway = r.Method == http.MethodGet && r.Header.Get(mayFill) != ""
	q.repair, q.cause = readCause(r)
	return q, nil
}

// parsePlace reads the place in line of whoever asks, 0 where it has none.
func parsePlace(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	place, err := strconv.ParseInt(s, 10, 64)
	if err != nil || place <= 0 {
		return 0, oci.ErrUnsupported.Because("place %.40q", s)
	}
	return place, nil
}

// readCause reads whether bytes are for a repair, and for which kind of it.
func readCause(r *http.Request) (repair bool, cause Cause) {
	switch Cause(r.Header.Get(forRepair)) {
	case "":
		return false, CausePull
	case CauseRebalance:
		return true, CauseRebalance
	}
	return true, CauseRepair
}

// parseRange reads the forms of range that nodes ask each other for: all from
// off on, and, with an end, the bytes before that.
func parseRange(s string) (off, end int64, err error) {
	if s == "" {
		return 0, 0, nil
	}
	digits, ok := strings.CutPrefix(s, "bytes=")
	from, last, both := strings.Cut(digits, "-")
	first, err := strconv.ParseUint(from, 10, 63)
	if !ok || !both || err != nil {
		return 0, 0, oci.ErrUnsupported.Because("range %.40q", s)
	}
	if last == "" {
		return int64(first), 0, nil
	}
	final, err := strconv.ParseUint(last, 10, 62)
	if err != nil || final < first {
		return 0, 0, oci.ErrUnsupported.Because("range %.40q", s)
	}
	return int64(first), int64(final) + 1, nil
}
