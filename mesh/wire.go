package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

const (
	copyBuffer = 256 << 10
	maxAnswer  = 64 << 10 // of an answer that is not a blob

	// denial marks an answer that a node lacks a blob: a 404 to HEAD has no
	// body to tell it from other ones.
	denial = "Flotilla-Denied"
)

var (
	errNoAnswer = errors.New("no answer in time")
	errNoTaker  = errors.New("it takes no bytes")
	errDied     = errors.New("gossip sees it down")
)

// decode turns an answer that is not a success into the error that it carries.
func decode(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return oci.ErrUnavailable.Wrap(err)
	}
	return oci.DecodeError(body)
}

// refuse answers a peer's request with an error.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusBadRequest
	var known *oci.Error
	if !errors.As(err, &known) {
		known = oci.ErrUnavailable
	}
	switch known.Kind {
	case oci.ErrBlobUnknown.Kind:
		w.Header().Set(denial, "1")
		status = http.StatusNotFound
	case oci.ErrUploadUnknown.Kind:
		status = http.StatusNotFound
	case oci.ErrUnavailable.Kind:
		status = http.StatusServiceUnavailable
	}
	body := oci.EncodeError(err)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // who does not read it has gone
}

// outgoing is a request body on its way to a peer. It ends the request when
// the peer takes no bytes for a while; and, once it has them all, when it goes
// down or takes too long before it answers. The time that r needs is r's own:
// it may be a slow client.
type outgoing struct {
	r      io.Reader
	limits limits
	cancel context.CancelCauseFunc
	timer  *time.Timer
	tally  *atomic.Int64 // nil, or counts what was read of r

	mu    sync.Mutex
	begun bool      // something was read, or is being read
	busy  bool      // r is being read
	sent  time.Time // when the peer had been sent everything
	over  bool      // the request has its answer
	n     int64
	err   error // of r, unless it just ended
}

// limits is what a peer may keep a request waiting for.
type limits struct {
	stall  time.Duration // without taking a byte; and between looks at down
	answer time.Duration // for the answer to the whole body, 0 for no bound
	down   func() bool   // the peer seems down
	slow   func()        // nil, or told when the answer to the whole body takes longer than stall
}

// newOutgoing starts counting at once: the request begins with a wait for the
// peer's permission to send.
func newOutgoing(r io.Reader, l limits, cancel context.CancelCauseFunc) *outgoing {
	o := &outgoing{r: r, limits: l, cancel: cancel}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.timer = time.AfterFunc(l.stall, o.expire)
	return o
}

func (o *outgoing) expire() {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.over || o.busy:
	case o.sent.IsZero():
		o.cancel(errNoTaker)
	case o.limits.down():
		o.cancel(errDied)
	case o.limits.answer > 0 && time.Since(o.sent) > o.limits.answer:
		o.cancel(errNoAnswer)
	default:
		if o.limits.slow != nil {
			o.limits.slow()
		}
		o.timer.Reset(o.limits.stall)
	}
}

// taken reports whether the peer has asked for bytes.
func (o *outgoing) taken() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.begun
}

// Read implements io.Reader for the transport.
func (o *outgoing) Read(p []byte) (int, error) {
	o.mu.Lock()
	if o.over {
		o.mu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	}
	o.begun, o.busy = true, true
	o.timer.Stop()
	o.mu.Unlock()

	n, err := o.r.Read(p)

	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy = false
	o.n += int64(n)
	if o.tally != nil {
		o.tally.Add(int64(n))
	}
	if err != nil && err != io.EOF {
		o.err = err
	}
	if !o.over {
		o.timer.Reset(o.limits.stall)
	}
	return n, err
}

// Close implements io.Closer for the transport, which closes too early to end
// anything: the answer is still to come.
func (o *outgoing) Close() error { return nil }

// wrote is told by the transport when the request is out.
func (o *outgoing) wrote(info httptrace.WroteRequestInfo) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if info.Err == nil && !o.over {
		o.sent = time.Now()
		o.timer.Reset(o.limits.stall)
	}
}

// alive is told by the transport of an answer before the last one: the peer
// holds the body back for a while, and says that it has not gone.
func (o *outgoing) alive(int, textproto.MIMEHeader) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.over || o.busy {
		return nil
	}
	if !o.sent.IsZero() {
		o.sent = time.Now()
	}
	o.timer.Reset(o.limits.stall)
	return nil
}

// again returns the body once more, as long as nothing was read of it: the
// transport asks when a connection that it had kept turns out to be gone.
func (o *outgoing) again() (io.ReadCloser, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.begun {
		return nil, errors.New("part of the body was sent")
	}
	return o, nil
}

// end stops the watch. It returns how much of r was read, and r's error.
// Whoever owns r has it back, but for a Read that may still wait in it.
func (o *outgoing) end() (int64, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.over = true
	o.timer.Stop()
	return o.n, o.err
}

// do sends req with o as its body, if the peer wants it: a peer that has the
// bytes, or cannot take them, answers from the header alone. size below 0 is
// unknown.
func (b *Blobs) do(req *http.Request, o *outgoing, size int64) (*http.Response, error) {
	req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{WroteRequest: o.wrote, Got1xxResponse: o.alive}))
	if size != 0 {
		req.Body, req.ContentLength, req.GetBody = o, size, o.again
		req.Header.Set("Expect", "100-continue")
		// Tells the transport, and nobody else, that it may repeat the request
		// where nothing of the body was sent.
		req.Header["Idempotency-Key"] = nil
	}
	resp, err := b.client.Do(req)
	if cause := context.Cause(req.Context()); err != nil && cause != nil {
		err = cause
	}
	return resp, err
}

// blobSize returns the size of the whole blob of which resp serves what q asks for.
func blobSize(resp *http.Response, q question) (int64, error) {
	if q.off == 0 && q.end == 0 {
		if resp.StatusCode != http.StatusOK || resp.ContentLength < 0 {
			return 0, errors.New("the answer does not say how large the blob is")
		}
		return resp.ContentLength, nil
	}
	var from, to, size int64
	got := resp.Header.Get("Content-Range")
	if _, err := fmt.Sscanf(got, "bytes %d-%d/%d", &from, &to, &size); err != nil || from != q.off || to != q.last(size) || size <= q.off {
		return 0, fmt.Errorf("the answer serves %q instead of the bytes from %d on", got, q.off)
	}
	return size, nil
}

// incoming is the body of a source.
type incoming struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	count  *atomic.Int64
}

func (i *incoming) Read(p []byte) (int, error) {
	n, err := i.ReadCloser.Read(p)
	i.count.Add(int64(n))
	return n, err
}

// Close may come while Read waits, and frees it.
func (i *incoming) Close() error {
	i.cancel(nil)
	return i.ReadCloser.Close()
}
