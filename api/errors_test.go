package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
)

func TestErrorAnswers(t *testing.T) {
	rows := []struct {
		err        *oci.Error
		status     int
		code       string
		retryAfter string
	}{
		{oci.ErrNameInvalid, 400, "NAME_INVALID", ""},
		{oci.ErrNameUnknown, 404, "NAME_UNKNOWN", ""},
		{oci.ErrTagInvalid, 400, "MANIFEST_INVALID", ""},
		{oci.ErrDigestInvalid, 400, "DIGEST_INVALID", ""},
		{oci.ErrBlobUnknown, 404, "BLOB_UNKNOWN", ""},
		{oci.ErrUploadUnknown, 404, "BLOB_UPLOAD_UNKNOWN", ""},
		{oci.ErrUploadInvalid, 400, "BLOB_UPLOAD_INVALID", ""},
		{oci.ErrUploadOutOfOrder, 416, "BLOB_UPLOAD_INVALID", ""},
		{oci.ErrRangeInvalid, 416, "UNSUPPORTED", ""},
		{oci.ErrSizeInvalid, 400, "SIZE_INVALID", ""},
		{oci.ErrManifestUnknown, 404, "MANIFEST_UNKNOWN", ""},
		{oci.ErrManifestInvalid, 400, "MANIFEST_INVALID", ""},
		{oci.ErrManifestTooLarge, 413, "SIZE_INVALID", ""},
		{oci.ErrManifestBlobUnknown, 400, "MANIFEST_BLOB_UNKNOWN", ""},
		{oci.ErrConflict, 409, "CONFLICT", ""},
		{oci.ErrTooManyTags, 414, "UNSUPPORTED", ""},
		{oci.ErrDenied, 403, "DENIED", ""},
		{oci.ErrDiskFull, 507, "DENIED", ""},
		{oci.ErrUnsupported, 400, "UNSUPPORTED", ""},
		{oci.ErrMethodNotAllowed, 405, "UNSUPPORTED", ""},
		{oci.ErrNotFound, 404, "UNSUPPORTED", ""},
		{oci.ErrTooManyRequests, 429, "TOOMANYREQUESTS", "5"},
		{oci.ErrUnavailable, 503, "UNAVAILABLE", "2"},
		{oci.ErrOverdue, 503, "UNAVAILABLE", "2"},
	}
	for _, row := range rows {
		t.Run(string(row.err.Kind), func(t *testing.T) {
			cause := errors.New("10.0.0.7:5001: /var/lib/flotilla")
			err := fmt.Errorf("do a thing: %w", row.err.Because("why").WithDetail(map[string]int{"n": 1}).Wrap(cause))
			w := httptest.NewRecorder()
			writeError(w, err)
			if w.Code != row.status || w.Header().Get("Retry-After") != row.retryAfter {
				t.Errorf("got %d, Retry-After %q; want %d, %q", w.Code, w.Header().Get("Retry-After"), row.status, row.retryAfter)
			}
			if got, want := w.Header().Get("Content-Length"), fmt.Sprint(w.Body.Len()); got != want {
				t.Errorf("Content-Length %s, want %s", got, want)
			}
			want := fmt.Sprintf(`{"errors":[{"code":%q,"message":%q,"detail":{"n":1}}]}`, row.code, row.err.Message+": why")
			if got := w.Body.String(); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}

	// No kind may be forgotten: an unknown one is a 500.
	source, err := os.ReadFile("oci/error.go")
	if err != nil {
		t.Fatal(err)
	}
	kinds := regexp.MustCompile(`Kind: "([a-z-]+)"`).FindAllStringSubmatch(string(source), -1)
	if len(kinds) < len(rows) {
		t.Errorf("found %d kinds in the source, expected %d", len(kinds), len(rows))
	}
	for _, k := range kinds {
		if status, _ := statusOf(oci.Kind(k[1])); status == http.StatusInternalServerError {
			t.Errorf("kind %q has no status", k[1])
		}
	}
}

func TestErrorsOutsideTheVocabulary(t *testing.T) {
	for name, row := range map[string]struct {
		err    error
		status int
		code   string
	}{
		"anything else": {errors.New("secret: pebble at /data"), 500, "UNKNOWN"},
		"cut off":       {fmt.Errorf("ask: %w", context.Canceled), 503, "UNAVAILABLE"},
		"too slow":      {fmt.Errorf("ask: %w", context.DeadlineExceeded), 503, "UNAVAILABLE"},
		"odd detail":    {oci.ErrDenied.WithDetail(make(chan int)), 403, "DENIED"},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			writeError(w, row.err)
			var body struct {
				Errors []struct{ Code, Message string }
			}
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || len(body.Errors) != 1 {
				t.Fatalf("body %s: %v", w.Body, err)
			}
			if w.Code != row.status || body.Errors[0].Code != row.code {
				t.Errorf("got %d %s, want %d %s", w.Code, body.Errors[0].Code, row.status, row.code)
			}
			if strings.Contains(w.Body.String(), "secret") || strings.Contains(w.Body.String(), "ask") {
				t.Errorf("internals shown: %s", w.Body)
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	for name, row := range map[string]struct {
		f    metadata.Freshness
		want []string
	}{
		"fresh":       {metadata.Freshness{}, nil},
		"aged":        {metadata.Freshness{Degraded: true, Age: 90*time.Second + 1}, []string{`299 - "this node has lost touch with the mesh: the answer may be up to 1m30s old"`}},
		"age unknown": {metadata.Freshness{Degraded: true}, []string{`299 - "this node has lost touch with the mesh: the answer may be old"`}},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			warnAge(w, row.f)
			if got := w.Header().Values("Warning"); !slices.Equal(got, row.want) {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
	for _, everywhere := range []bool{true, false} {
		w := httptest.NewRecorder()
		deleted(w, everywhere)
		if w.Code != http.StatusAccepted || (w.Header().Get("Warning") == "") != everywhere {
			t.Errorf("deleted everywhere=%v: %d, Warning %q", everywhere, w.Code, w.Header().Get("Warning"))
		}
	}
}

func TestParseContentRange(t *testing.T) {
	for value, want := range map[string]struct {
		off, length int64
		err         error
	}{
		"0-0":                         {0, 1, nil},
		"0-1023":                      {0, 1024, nil},
		"1024-2047":                   {1024, 1024, nil},
		"007-8":                       {7, 2, nil},
		"5-4":                         {0, 0, oci.ErrUploadOutOfOrder},
		"0-9223372036854775807":       {0, 0, oci.ErrUploadOutOfOrder},
		"9223372036854775808-9999999": {0, 0, oci.ErrUploadOutOfOrder},
		"0-99999999999999999999999":   {0, 0, oci.ErrUploadOutOfOrder},
		"":                            {0, 0, oci.ErrUploadInvalid},
		"0":                           {0, 0, oci.ErrUploadInvalid},
		"0-":                          {0, 0, oci.ErrUploadInvalid},
		"-5":                          {0, 0, oci.ErrUploadInvalid},
		" 0-5":                        {0, 0, oci.ErrUploadInvalid},
		"0-5\n":                       {0, 0, oci.ErrUploadInvalid},
		"+0-5":                        {0, 0, oci.ErrUploadInvalid},
		"0x0-5":                       {0, 0, oci.ErrUploadInvalid},
		"bytes 0-5/6":                 {0, 0, oci.ErrUploadInvalid},
		"0-5,7-8":                     {0, 0, oci.ErrUploadInvalid},
		"٠-٥":                         {0, 0, oci.ErrUploadInvalid},
	} {
		t.Run(value, func(t *testing.T) {
			off, length, err := parseContentRange(value)
			if off != want.off || length != want.length || !errors.Is(err, want.err) {
				t.Errorf("got %d, %d, %v; want %+v", off, length, err, want)
			}
		})
	}
}

func FuzzParseContentRange(f *testing.F) {
	for _, s := range []string{"0-0", "5-4", "bytes 0-1/2", "0-9223372036854775806", "18446744073709551616-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		off, length, err := parseContentRange(s)
		if err != nil {
			if off != 0 || length != 0 {
				t.Errorf("%q: %d, %d beside %v", s, off, length, err)
			}
			return
		}
		if off < 0 || length < 1 || off+length < off {
			t.Errorf("%q was read as %d bytes at %d", s, length, off)
		}
		if again, _, err := parseContentRange(fmt.Sprintf("%d-%d", off, off+length-1)); again != off || err != nil {
			t.Errorf("%q: printed and read again it is %d, %v", s, again, err)
		}
	})
}

func TestExactReader(t *testing.T) {
	for name, row := range map[string]struct {
		body string
		left int64
		want string
		err  error
	}{
		"exact":  {"hello", 5, "hello", nil},
		"short":  {"hell", 5, "hell", oci.ErrSizeInvalid},
		"long":   {"hello!", 5, "hello", oci.ErrSizeInvalid},
		"empty":  {"", 5, "", oci.ErrSizeInvalid},
		"single": {"h", 1, "h", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := io.ReadAll(&exactReader{r: strings.NewReader(row.body), left: row.left})
			if string(got) != row.want || !errors.Is(err, row.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, row.want, row.err)
			}
		})
	}
}
