package api

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// fileCatcher notes what its ReadFrom is handed.
type fileCatcher struct {
	*httptest.ResponseRecorder
	pieces []int64
	odd    []string
}

func (c *fileCatcher) ReadFrom(src io.Reader) (int64, error) {
	from, ok := src.(*io.LimitedReader)
	if !ok {
		c.odd = append(c.odd, fmt.Sprintf("%T", src))
	} else if _, ok := from.R.(*os.File); !ok {
		c.odd = append(c.odd, fmt.Sprintf("%T of %T", src, from.R))
	} else {
		c.pieces = append(c.pieces, from.N)
	}
	return io.Copy(c.ResponseRecorder, src)
}

// blobFile returns an open file of so many bytes, a multiple of 16, and these.
// http.ServeContent begins at the start of it however often it is served.
func blobFile(t *testing.T, size int64) (*os.File, []byte) {
	t.Helper()
	content := bytes.Repeat([]byte("0123456789abcdef"), int(size/16))
	file, err := os.Create(filepath.Join(t.TempDir(), "blob"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	if _, err := file.Write(content); err != nil {
		t.Fatal(err)
	}
	return file, content
}

// TestFilesReachSendfile: net/http hands a body to sendfile only as an *os.File
// in an io.LimitedReader, and this must be what arrives there.
func TestFilesReachSendfile(t *testing.T) {
	file, content := blobFile(t, 2*fileStride+stride/2)
	for name, row := range map[string]struct {
		rangeHeader string
		want        []byte
		pieces      []int64
	}{
		"whole": {"", content, []int64{fileStride, fileStride, stride / 2}},
		"range": {"bytes=16-31", content[16:32], []int64{16}},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set("Range", row.rangeHeader)
			under := &fileCatcher{ResponseRecorder: httptest.NewRecorder()}
			w := newResponse(under, r, time.Minute)
			if err := serveContent(w, r, "sha256:x", file); err != nil {
				t.Fatal(err)
			}
			if len(under.odd) > 0 || fmt.Sprint(under.pieces) != fmt.Sprint(row.pieces) {
				t.Errorf("ReadFrom got files of %v and %v, want files of %v", under.pieces, under.odd, row.pieces)
			}
			if !bytes.Equal(under.Body.Bytes(), row.want) || w.written != int64(len(row.want)) || w.err != nil {
				t.Errorf("sent %d bytes, counted %d, err %v; want %d", under.Body.Len(), w.written, w.err, len(row.want))
			}
		})
	}
}

// slowTaker takes so much of a file before each deadline.
type slowTaker struct {
	*httptest.ResponseRecorder
	takes int64
}

func (s slowTaker) ReadFrom(src io.Reader) (int64, error) {
	n, err := io.Copy(s.ResponseRecorder, io.LimitReader(src, s.takes))
	if src.(*io.LimitedReader).N > 0 {
		err = os.ErrDeadlineExceeded
	}
	return n, err
}

// TestSlowTaker: a client that takes a stride of a file before each deadline
// gets all of it, one that takes less is dropped. A write that TLS cut off
// cannot be taken up again, so that a stride is all that it is given.
func TestSlowTaker(t *testing.T) {
	file, content := blobFile(t, fileStride+stride)
	for name, row := range map[string]struct {
		takes int64
		tls   *tls.ConnectionState
		want  int64
		err   error
	}{
		"just enough": {stride, nil, fileStride + stride, nil},
		"more":        {fileStride - 1, nil, fileStride + stride, nil},
		"too little":  {stride - 1, nil, stride - 1, os.ErrDeadlineExceeded},
		"TLS, enough": {stride, new(tls.ConnectionState), fileStride + stride, nil},
		"TLS, less":   {stride - 1, new(tls.ConnectionState), stride - 1, os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.TLS = row.tls
			under := slowTaker{httptest.NewRecorder(), row.takes}
			w := newResponse(under, r, time.Minute)
			if err := serveContent(w, r, "sha256:x", file); err != nil {
				t.Fatal(err)
			}
			if w.written != row.want || !errors.Is(w.err, row.err) || !bytes.Equal(under.Body.Bytes(), content[:row.want]) {
				t.Errorf("sent %d bytes (arrived %d), err %v; want %d, %v", w.written, under.Body.Len(), w.err, row.want, row.err)
			}
		})
	}
}

// TestResponseWithoutSendfile: whatever is underneath, the bytes and the counts
// are right.
func TestResponseWithoutSendfile(t *testing.T) {
	content := bytes.Repeat([]byte("x"), 3*stride+7)
	for name, send := range map[string]func(w http.ResponseWriter) (int64, error){
		"Write": func(w http.ResponseWriter) (int64, error) {
			n, err := w.Write(content)
			return int64(n), err
		},
		"ReadFrom": func(w http.ResponseWriter) (int64, error) {
			return io.Copy(w, io.LimitReader(bytes.NewReader(content), int64(len(content))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			under := httptest.NewRecorder()
			w := newResponse(under, httptest.NewRequest("GET", "/", nil), time.Minute)
			n, err := send(w)
			if err != nil || n != int64(len(content)) || w.written != n || w.status != 200 || !bytes.Equal(under.Body.Bytes(), content) {
				t.Errorf("sent %d (counted %d, status %d, arrived %d), %v", n, w.written, w.status, under.Body.Len(), err)
			}
		})
	}
}

// TestResponseController: what wraps a ResponseWriter must not hide it.
func TestResponseController(t *testing.T) {
	under := httptest.NewRecorder()
	w := newResponse(under, httptest.NewRequest("GET", "/", nil), time.Minute)
	if err := http.NewResponseController(w).Flush(); err != nil || !under.Flushed {
		t.Errorf("Flush through the wrapper: %v, flushed %v", err, under.Flushed)
	}
	w.WriteHeader(http.StatusEarlyHints)
	if w.status != 0 {
		t.Errorf("an informational status was taken for the answer's: %d", w.status)
	}
}
