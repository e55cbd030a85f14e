package api_test

import (
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// stream hides the length of a body, so that it goes out chunked.
func stream(s string) io.Reader { return io.MultiReader(strings.NewReader(s)) }

func TestPushBlob(t *testing.T) {
	n := newNode(t, nil)
	const repo = "team/blobs/uploads/app" // words of the API are fine in a name
	start := func(t *testing.T, query string) string {
		r := n.do(t, "POST", "/v2/"+repo+"/blobs/uploads/"+query, nil, nil).want(t, 202, head{"Range": "0-0", "Content-Length": "0"})
		at := r.header.Get("Location")
		if !strings.HasPrefix(at, "/v2/"+repo+"/blobs/uploads/") || !strings.HasSuffix(at, r.header.Get("Docker-Upload-UUID")) {
			t.Fatalf("Location %q", at)
		}
		return at
	}
	forms := map[string]func(t *testing.T, content string, d digest.Digest) reply{
		"one POST": func(t *testing.T, content string, d digest.Digest) reply {
			return n.do(t, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+d.String(), nil, content)
		},
		"one POST of unknown length": func(t *testing.T, content string, d digest.Digest) reply {
			return n.do(t, "POST", "/v2/"+repo+"/blobs/uploads?digest="+d.String(), nil, stream(content))
		},
		"POST and PUT": func(t *testing.T, content string, d digest.Digest) reply {
			return n.do(t, "PUT", start(t, "")+"?digest="+d.String(), nil, content)
		},
		"stream": func(t *testing.T, content string, d digest.Digest) reply {
			at := start(t, "?digest-algorithm="+d.Algorithm().String())
			at = n.do(t, "PATCH", at, nil, stream(content)).
				want(t, 202, head{"Range": fmt.Sprintf("0-%d", len(content)-1), "Content-Length": "0"}).header.Get("Location")
			return n.do(t, "PUT", at+"?digest="+d.String(), nil, nil)
		},
		"chunks": func(t *testing.T, content string, d digest.Digest) reply {
			at := start(t, "")
			at = n.do(t, "PATCH", at, head{"Content-Range": "0-3"}, content[:4]).want(t, 202, head{"Range": "0-3"}).header.Get("Location")
			at = n.do(t, "PATCH", at, head{"Content-Range": "4-4"}, stream(content[4:5])).want(t, 202, head{"Range": "0-4"}).header.Get("Location")
			at = n.do(t, "GET", at, nil, nil).want(t, 204, head{"Range": "0-4"}).header.Get("Location")
			return n.do(t, "PUT", at+"?digest="+d.String(), head{"Content-Range": fmt.Sprintf("5-%d", len(content)-1)}, content[5:])
		},
	}
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		for name, push := range forms {
			t.Run(fmt.Sprintf("%s %s", alg, name), func(t *testing.T) {
				content := "content of " + t.Name()
				d := alg.FromString(content)
				at := "/v2/" + repo + "/blobs/" + d.String()
				n.do(t, "HEAD", at, nil, nil).want(t, 404, nil)
				push(t, content, d).want(t, 201, head{"Location": at, "Docker-Content-Digest": d.String(), "Content-Length": "0"})

				headers := head{
					"Docker-Content-Digest": d.String(), "Content-Length": fmt.Sprint(len(content)), "ETag": `"` + d.String() + `"`,
					"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes",
				}
				n.do(t, "HEAD", at, nil, nil).want(t, 200, headers)
				escaped := strings.Replace(at, alg.String()+":", alg.String()+"%3A", 1)
				for _, path := range []string{at, escaped} {
					if got := n.do(t, "GET", path, nil, nil).want(t, 200, headers).body; got != content {
						t.Errorf("got %q, want %q", got, content)
					}
				}
				n.do(t, "GET", "/v2/other/blobs/"+d.String(), nil, nil).want(t, 404, nil)
			})
		}
	}
	t.Run("empty", func(t *testing.T) {
		d := n.pushBlob(t, repo, "")
		n.do(t, "GET", "/v2/"+repo+"/blobs/"+d.String(), head{"Range": "bytes=0-"}, nil).
			want(t, 200, head{"Content-Length": "0", "Docker-Content-Digest": d.String()})
	})
}

func TestMount(t *testing.T) {
	n := newNode(t, nil)
	d := n.pushBlob(t, "source", "shared layer")
	missing := digest.SHA512.FromString("not pushed yet")
	for name, row := range map[string]struct {
		query   string
		mounted bool
	}{
		"from the source":     {"mount=" + d.String() + "&from=source", true},
		"from anywhere":       {"mount=" + d.String(), true},
		"from elsewhere":      {"mount=" + d.String() + "&from=elsewhere", false},
		"from no name at all": {"mount=" + d.String() + "&from=..%2Fsource", false},
		"of nothing":          {"mount=" + missing.String() + "&from=source", false},
		"of nothing anywhere": {"mount=" + missing.String(), false},
	} {
		t.Run(name, func(t *testing.T) {
			repo := "to/" + strings.ReplaceAll(name, " ", "-")
			r := n.do(t, "POST", "/v2/"+repo+"/blobs/uploads/?"+row.query, nil, nil)
			if row.mounted {
				at := "/v2/" + repo + "/blobs/" + d.String()
				r.want(t, 201, head{"Location": at, "Docker-Content-Digest": d.String()})
				if got := n.do(t, "GET", at, nil, nil).want(t, 200, nil).body; got != "shared layer" {
					t.Errorf("got %q", got)
				}
				return
			}
			at := r.want(t, 202, nil).header.Get("Location") // the session takes what could not be mounted
			other := digest.SHA512.FromString(repo)
			n.do(t, "PUT", at+"?digest="+other.String(), nil, repo).want(t, 201, nil)
		})
	}
}

func TestChunksOutOfOrder(t *testing.T) {
	n := newNode(t, nil)
	at := n.do(t, "POST", "/v2/r/blobs/uploads/", nil, nil).want(t, 202, nil).header.Get("Location")
	n.do(t, "PATCH", at, head{"Content-Range": "0-4"}, "01234").want(t, 202, nil)
	d := digest.FromString("0123456789")
	put := at + "?digest=" + d.String()
	for name, row := range map[string]struct {
		method, path, contentRange string
		body                       any
		status                     int
		code                       string
	}{
		"again":                     {"PATCH", at, "0-4", "01234", 416, "BLOB_UPLOAD_INVALID"},
		"overlap":                   {"PATCH", at, "4-5", "45", 416, "BLOB_UPLOAD_INVALID"},
		"gap":                       {"PATCH", at, "6-7", "67", 416, "BLOB_UPLOAD_INVALID"},
		"backwards":                 {"PATCH", at, "5-4", "", 416, "BLOB_UPLOAD_INVALID"},
		"beyond int64":              {"PATCH", at, "9223372036854775808-9223372036854775809", "56", 416, "BLOB_UPLOAD_INVALID"},
		"gap in the closing PUT":    {"PUT", put, "6-9", "6789", 416, "BLOB_UPLOAD_INVALID"},
		"again in the closing PUT":  {"PUT", put, "0-9", "0123456789", 416, "BLOB_UPLOAD_INVALID"},
		"other length":              {"PATCH", at, "5-9", "5678", 400, "SIZE_INVALID"},
		"other length in PUT":       {"PUT", put, "5-9", "56789A", 400, "SIZE_INVALID"},
		"form of RFC 9110":          {"PATCH", at, "bytes 5-9/10", "56789", 400, "BLOB_UPLOAD_INVALID"},
		"form of RFC 9110 in PUT":   {"PUT", put, "bytes 5-9/10", "56789", 400, "BLOB_UPLOAD_INVALID"},
		"digest of no known kind":   {"PUT", at + "?digest=md5:d41d8cd98f00b204e9800998ecf8427e", "5-9", "56789", 400, "DIGEST_INVALID"},
		"digest left out":           {"PUT", at, "5-9", "56789", 400, "DIGEST_INVALID"},
		"session of another's name": {"PATCH", strings.Replace(at, "/r/", "/s/", 1), "5-9", "56789", 404, "BLOB_UPLOAD_UNKNOWN"},
	} {
		t.Run(name, func(t *testing.T) {
			r := n.do(t, row.method, row.path, head{"Content-Range": row.contentRange}, row.body).refused(t, row.status, row.code)
			if row.status == 416 { // says how to go on
				r.want(t, 416, head{"Range": "0-4", "Location": at})
			}
			n.do(t, "GET", at, nil, nil).want(t, 204, head{"Range": "0-4", "Location": at})
		})
	}
	n.do(t, "PUT", put, head{"Content-Range": "5-9"}, "56789").want(t, 201, head{"Docker-Content-Digest": d.String()})
	n.do(t, "PUT", put, nil, nil).want(t, 201, nil) // the answer was lost: once more
}

// TestChunkedBodyOfOtherLength: a body whose length comes with its bytes must
// still be what its Content-Range says.
func TestChunkedBodyOfOtherLength(t *testing.T) {
	n := newNode(t, nil)
	for name, body := range map[string]string{"shorter": "0123", "longer": "012345"} {
		t.Run(name, func(t *testing.T) {
			at := n.do(t, "POST", "/v2/r/blobs/uploads/", nil, nil).want(t, 202, nil).header.Get("Location")
			r := n.do(t, "PATCH", at, head{"Content-Range": "0-4"}, stream(body))
			if r.status != 400 {
				t.Fatalf("got %d %s", r.status, r.body)
			}
			d := digest.FromString("01234")
			size := 0
			got := n.do(t, "GET", at, nil, nil).want(t, 204, nil).header.Get("Range")
			if _, err := fmt.Sscanf(got, "0-%d", &size); err != nil || size > 4 {
				t.Fatalf("after %q in chunks the session is at %s", body, got)
			}
			rest := "01234"[size+1:]
			n.do(t, "PUT", at+"?digest="+d.String(), nil, rest).want(t, 201, nil)
		})
	}
}

func TestUploadEnds(t *testing.T) {
	n := newNode(t, nil)
	d := digest.FromString("right")
	start := func() string {
		return n.do(t, "POST", "/v2/r/blobs/uploads/", nil, nil).want(t, 202, nil).header.Get("Location")
	}
	cancelled, mismatched := start(), start()
	n.do(t, "DELETE", cancelled, nil, nil).want(t, 204, nil)
	n.do(t, "PUT", mismatched+"?digest="+d.String(), nil, "wrong").refused(t, 400, "DIGEST_INVALID")
	for name, at := range map[string]string{
		"cancelled":       cancelled,
		"mismatched":      mismatched,
		"never there":     "/v2/r/blobs/uploads/01234567-89ab-cdef-0123-456789abcdef",
		"not an id":       "/v2/r/blobs/uploads/x",
		"parent folder":   "/v2/r/blobs/uploads/..",
		"hidden file":     "/v2/r/blobs/uploads/.mark",
		"odd characters":  "/v2/r/blobs/uploads/a&b",
		"longer than any": "/v2/r/blobs/uploads/" + strings.Repeat("0", 500),
	} {
		t.Run(name, func(t *testing.T) {
			n.do(t, "GET", at, nil, nil).refused(t, 404, "BLOB_UPLOAD_UNKNOWN")
			n.do(t, "PATCH", at, nil, "right").refused(t, 404, "BLOB_UPLOAD_UNKNOWN")
			n.do(t, "PUT", at+"?digest="+d.String(), nil, "right").refused(t, 404, "BLOB_UPLOAD_UNKNOWN")
			n.do(t, "DELETE", at, nil, nil).refused(t, 404, "BLOB_UPLOAD_UNKNOWN")
		})
	}
	n.do(t, "GET", "/v2/r/blobs/"+digest.FromString("wrong").String(), nil, nil).want(t, 404, nil)
}

func TestBlobRangesAndConditions(t *testing.T) {
	n := newNode(t, nil)
	content := strings.Repeat("0123456789", 100)
	d := n.pushBlob(t, "r", content)
	at, etag := "/v2/r/blobs/"+d.String(), `"`+d.String()+`"`
	for name, row := range map[string]struct {
		method string
		header head
		status int
		want   head
		body   string
	}{
		"first bytes":            {"GET", head{"Range": "bytes=0-9"}, 206, head{"Content-Range": "bytes 0-9/1000", "Content-Length": "10"}, content[:10]},
		"middle":                 {"GET", head{"Range": "bytes=500-599"}, 206, head{"Content-Range": "bytes 500-599/1000"}, content[500:600]},
		"to the end":             {"GET", head{"Range": "bytes=990-"}, 206, head{"Content-Range": "bytes 990-999/1000"}, content[990:]},
		"last bytes":             {"GET", head{"Range": "bytes=-5"}, 206, head{"Content-Range": "bytes 995-999/1000"}, content[995:]},
		"beyond the end":         {"GET", head{"Range": "bytes=999-5000"}, 206, head{"Content-Range": "bytes 999-999/1000"}, "9"},
		"range if unchanged":     {"GET", head{"Range": "bytes=0-0", "If-Range": etag}, 206, nil, "0"},
		"range if of another":    {"GET", head{"Range": "bytes=0-0", "If-Range": `"x"`}, 200, nil, content},
		"have it":                {"GET", head{"If-None-Match": etag}, 304, head{"ETag": etag, "Docker-Content-Digest": d.String()}, ""},
		"have another":           {"GET", head{"If-None-Match": `"x"`}, 200, nil, content},
		"only if it is":          {"GET", head{"If-Match": etag}, 200, nil, content},
		"only if it is another":  {"GET", head{"If-Match": `"x"`}, 412, nil, ""},
		"head is of the whole":   {"HEAD", head{"Range": "bytes=0-9"}, 200, head{"Content-Length": "1000"}, ""},
		"head, have it":          {"HEAD", head{"If-None-Match": "*"}, 304, nil, ""},
		"accept is not our help": {"GET", head{"Accept": "text/html", "Accept-Encoding": "br"}, 200, nil, content},
	} {
		t.Run(name, func(t *testing.T) {
			got := n.do(t, row.method, at, row.header, nil).want(t, row.status, row.want)
			if got.body != row.body {
				t.Errorf("got %d bytes %.20q, want %d %.20q", len(got.body), got.body, len(row.body), row.body)
			}
		})
	}
	for _, odd := range []string{"bytes=1000-", "bytes=9-8", "bytes=x-", "lines=1-2"} {
		t.Run("refused "+odd, func(t *testing.T) {
			n.do(t, "GET", at, head{"Range": odd}, nil).refused(t, 416, "UNSUPPORTED")
		})
	}
}

func TestDeleteBlob(t *testing.T) {
	n := newNode(t, nil)
	d := n.pushBlob(t, "a", "shared")
	n.do(t, "POST", "/v2/b/blobs/uploads/?mount="+d.String()+"&from=a", nil, nil).want(t, 201, nil)
	n.do(t, "DELETE", "/v2/a/blobs/"+d.String(), nil, nil).want(t, 202, head{"Warning": ""})
	n.do(t, "HEAD", "/v2/a/blobs/"+d.String(), nil, nil).want(t, 404, nil)
	n.do(t, "GET", "/v2/a/blobs/"+d.String(), nil, nil).want(t, 404, nil)
	n.do(t, "DELETE", "/v2/a/blobs/"+d.String(), nil, nil).want(t, 404, nil)
	if got := n.do(t, "GET", "/v2/b/blobs/"+d.String(), nil, nil).want(t, 200, nil).body; got != "shared" {
		t.Errorf("the other repository's blob is %q", got)
	}
}

// TestHTTP2: deadlines, counting and bodies are other code of net/http there.
func TestHTTP2(t *testing.T) {
	n := newNode(t, nil)
	server := httptest.NewUnstartedServer(n.handler)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	over := &node{url: server.URL, client: server.Client()}
	if resp, err := over.client.Get(over.url + "/v2/"); err != nil || resp.ProtoMajor != 2 {
		t.Fatalf("got %v, %v; want HTTP/2", resp, err)
	}

	content := strings.Repeat("0123456789abcdef", 1<<16) // several strides
	d := digest.FromString(content)
	at := over.do(t, "POST", "/v2/r/blobs/uploads/", nil, nil).want(t, 202, nil).header.Get("Location")
	over.do(t, "PATCH", at, nil, stream(content)).want(t, 202, head{"Range": fmt.Sprintf("0-%d", len(content)-1)})
	over.do(t, "PUT", at+"?digest="+d.String(), nil, nil).want(t, 201, nil)
	if got := over.do(t, "GET", "/v2/r/blobs/"+d.String(), nil, nil).want(t, 200, nil).body; got != content {
		t.Errorf("got %d bytes, want %d", len(got), len(content))
	}
	over.do(t, "GET", "/v2/r/blobs/"+d.String(), head{"Range": "bytes=10-15"}, nil).want(t, 206, head{"Content-Length": "6"})
	over.do(t, "GET", "/v2/R/blobs/"+d.String(), nil, nil).refused(t, 400, "NAME_INVALID")
	if got := n.observed(t, 4); got.Out != int64(len(content)) || got.Route != "blob" {
		t.Errorf("observed %+v", got)
	}
}
