package api

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

const (
	// stride is what a client must take per Config.Idle: 17 kbit/s with a
	// minute. It is the most that is written under one deadline, except for
	// sendfile, which gets fileStride at a time: it can go on after a deadline,
	// where the client has taken a stride by then.
	stride     = 128 << 10
	fileStride = 4 << 20
)

// response is the http.ResponseWriter of every handler. It counts, and it puts a
// deadline on each write while it waits, and on nothing else: a transfer may
// take hours as long as it moves, and a handler may wait for a peer as long as
// it likes. (net/http's own WriteTimeout is for the whole answer.)
type response struct {
	http.ResponseWriter
	control *http.ResponseController
	idle    time.Duration
	secure  bool // TLS is underneath
	body    *body

	status  int   // 0 until the header is written
	written int64 // bytes of the answer's body
	err     error // why a body stayed shorter than announced
}

func newResponse(w http.ResponseWriter, r *http.Request, idle time.Duration) *response {
	control := http.NewResponseController(w)
	b := &body{ReadCloser: r.Body, control: control, idle: idle}
	b.done.Store(r.Body == nil || r.Body == http.NoBody)
	return &response{ResponseWriter: w, control: control, idle: idle, secure: r.TLS != nil, body: b}
}

// Unwrap lets http.ResponseController reach what is underneath.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader notes the status.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
		w.leaveBody()
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write writes p in strides.
func (w *response) Write(p []byte) (n int, err error) {
	w.ok()
	for err == nil && n < len(p) {
		var m int
		w.wait()
		m, err = w.ResponseWriter.Write(p[n:min(n+stride, len(p))])
		w.waited()
		n += m
		w.written += int64(m)
	}
	return n, err
}

// ReadFrom sends src, in strides too. A file goes on to net/http in the one form
// that it hands to sendfile: an *os.File in an io.LimitedReader.
func (w *response) ReadFrom(src io.Reader) (n int64, err error) {
	w.ok()
	defer func() { w.err = err }()
	to, ok := w.ResponseWriter.(io.ReaderFrom)
	from, _ := src.(*io.LimitedReader)
	if ok && from != nil {
		if file, ok := from.R.(*os.File); ok {
			return w.sendFile(to, from, file)
		}
	}
	return io.Copy(struct{ io.Writer }{w}, src)
}

func (w *response) sendFile(to io.ReaderFrom, from *io.LimitedReader, file *os.File) (n int64, err error) {
	longest := int64(fileStride)
	if w.secure { // nothing can be written after a deadline has cut a record off
		longest = stride
	}
	for from.N > 0 {
		want := min(from.N, longest)
		w.wait()
		m, err := to.ReadFrom(&io.LimitedReader{R: file, N: want})
		w.waited()
		n += m
		w.written += m
		from.N -= m
		if err == nil && m < want {
			err = io.ErrUnexpectedEOF // the file is shorter than it was
		}
		if m >= stride && errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil // the client is slow, but not too slow
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (w *response) ok() {
	if w.status == 0 {
		w.status = http.StatusOK
		w.leaveBody()
	}
}

// wait and waited enclose a write. Where deadlines are not supported, as in
// tests without a connection, there is none.
func (w *response) wait()   { w.control.SetWriteDeadline(time.Now().Add(w.idle)) }
func (w *response) waited() { w.control.SetWriteDeadline(time.Time{}) }

// leaveBody bounds what net/http does once an answer begins: it reads on for a
// little, in case the rest of the request's body is short. Where the body has
// failed there is no use in that.
func (w *response) leaveBody() {
	switch {
	case w.body.failed.Load():
		w.control.SetReadDeadline(time.Now())
	case !w.body.done.Load():
		w.control.SetReadDeadline(time.Now().Add(w.idle))
	}
}

// finish is called when the handler is done: net/http flushes after that, and
// then clears the deadlines for the connection's next request.
func (w *response) finish() {
	w.ok()
	w.wait()
}

// body is a request's body that gives up on a client that sends nothing. Its
// counters are atomic since a handler may hand it to another goroutine.
type body struct {
	io.ReadCloser
	control *http.ResponseController
	idle    time.Duration
	read    atomic.Int64
	done    atomic.Bool // all has come
	failed  atomic.Bool // no more will come

	until time.Time // when all must have come; see keepPace
}

// keepPace has r's body, which is of size bytes at most and kept in memory, come
// at a pace: a stride in each idle time, as answers must be taken. Without it a
// byte now and then is enough, which is right for blobs of any size: they wait
// on disk.
func keepPace(r *http.Request, size int64) {
	if b, ok := r.Body.(*body); ok {
		b.until = time.Now().Add(b.idle * time.Duration(1+size/stride))
	}
}

// Read waits at most idle for the next bytes, and not beyond until. That it ended
// early is an ErrUploadInvalid.
func (b *body) Read(p []byte) (int, error) {
	next := time.Now().Add(b.idle)
	if !b.until.IsZero() && b.until.Before(next) {
		next = b.until
	}
	b.control.SetReadDeadline(next)
	n, err := b.ReadCloser.Read(p)
	// Cleared at once: HTTP/2 would close the body when the time comes, even
	// while nobody reads.
	b.control.SetReadDeadline(time.Time{})
	b.read.Add(int64(n))
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF:
		b.done.Store(true)
		return n, io.EOF
	}
	b.failed.Store(true)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if next == b.until {
			return n, oci.ErrUploadInvalid.Because("the body came too slowly").Wrap(err)
		}
		return n, oci.ErrUploadInvalid.Because("no byte came for %s", b.idle).Wrap(err)
	}
	return n, oci.ErrUploadInvalid.Because("the body ended early").Wrap(err)
}
