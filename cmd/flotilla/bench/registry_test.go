package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// registry is a small one in memory, with switches for what real ones do differently.
type registry struct {
	*httptest.Server
	manyTagsAtOnce bool                    // knows ?tag=
	noDelete       map[string]bool         // "tag", "manifest", "blob": 405
	answer         func(*http.Request) int // a status in place of the right one, or 0
	saw            func(*http.Request)     // before anything else
	user           string                  // needs "user:password"

	mu        sync.Mutex
	uploads   map[string][]byte
	blobs     map[string][]byte // by repository@digest, like manifests
	manifests map[string][]byte
	tags      map[string]map[string]string // repository, tag: digest
	pushed    []string                     // digests of blobs in the order they came
	requests  map[string]int               // by method and kind
}

func newRegistry(t *testing.T) *registry {
	r := emptyRegistry()
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func emptyRegistry() *registry {
	return &registry{
		noDelete: map[string]bool{}, uploads: map[string][]byte{}, blobs: map[string][]byte{},
		manifests: map[string][]byte{}, tags: map[string]map[string]string{}, requests: map[string]int{},
	}
}

// left describes everything that is in the registry.
func (r *registry) left() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	tags := 0
	for _, t := range r.tags {
		tags += len(t)
	}
	return fmt.Sprintf("%d uploads, %d tags, %d manifests, %d blobs", len(r.uploads), tags, len(r.manifests), len(r.blobs))
}

const nothingLeft = "0 uploads, 0 tags, 0 manifests, 0 blobs"

func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if r.saw != nil {
		r.saw(q)
	}
	user, password, _ := q.BasicAuth()
	if r.user != "" && user+":"+password != r.user {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return // the client went away
	}
	if r.answer != nil {
		if status := r.answer(q); status != 0 {
			http.Error(w, "as the test wants", status)
			return
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	path := strings.TrimPrefix(q.URL.Path, "/v2/")
	for _, kind := range []string{"blobs/uploads", "blobs", "manifests", "tags"} {
		if repo, ref, ok := strings.Cut(path, "/"+kind+"/"); ok {
			r.requests[q.Method+" "+kind]++
			switch kind {
			case "blobs/uploads":
				r.upload(w, q, repo, ref, body)
			case "blobs":
				r.content(w, q, r.blobs, "blob", repo+"@"+ref)
			case "manifests":
				r.manifest(w, q, repo, ref, body)
			case "tags":
				r.list(w, q, repo)
			}
			return
		}
	}
}

func (r *registry) upload(w http.ResponseWriter, q *http.Request, repo, id string, body []byte) {
	if q.Method == http.MethodPost {
		id = strconv.Itoa(len(r.pushed)) + "-" + strconv.Itoa(len(r.uploads))
		r.uploads[id] = nil
	}
	data, open := r.uploads[id]
	if !open {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id+"?state=1")
	switch q.Method {
	case http.MethodPost:
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPatch:
		if want := fmt.Sprintf("%d-%d", len(data), len(data)+len(body)-1); q.Header.Get("Content-Range") != want {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		r.uploads[id] = append(data, body...)
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPut:
		data = append(data, body...)
		d := digest.FromBytes(data)
		if q.URL.Query().Get("digest") != d.String() || q.URL.Query().Get("state") != "1" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		delete(r.uploads, id)
		r.blobs[repo+"@"+d.String()] = data
		r.pushed = append(r.pushed, d.String())
		w.WriteHeader(http.StatusCreated)
	case http.MethodDelete:
		delete(r.uploads, id)
		w.WriteHeader(http.StatusNoContent)
	}
}

func (r *registry) content(w http.ResponseWriter, q *http.Request, held map[string][]byte, kind, key string) {
	data, ok := held[key]
	switch {
	case q.Method == http.MethodDelete && r.noDelete[kind]:
		http.Error(w, "deletes are off", http.StatusMethodNotAllowed)
	case !ok:
		w.WriteHeader(http.StatusNotFound)
	case q.Method == http.MethodDelete:
		delete(held, key)
		w.WriteHeader(http.StatusAccepted)
	default:
		http.ServeContent(w, q, "", testTime(), bytes.NewReader(data))
	}
}

func (r *registry) manifest(w http.ResponseWriter, q *http.Request, repo, ref string, body []byte) {
	isTag := !strings.Contains(ref, ":")
	if r.tags[repo] == nil {
		r.tags[repo] = map[string]string{}
	}
	switch {
	case q.Method == http.MethodPut:
		d := digest.FromBytes(body).String()
		r.manifests[repo+"@"+d] = body
		if isTag {
			r.tags[repo][ref] = d
		}
		if r.manyTagsAtOnce {
			for _, tag := range q.URL.Query()["tag"] {
				r.tags[repo][tag] = d
				w.Header().Add("OCI-Tag", tag)
			}
		}
		w.WriteHeader(http.StatusCreated)
	case q.Method == http.MethodDelete && isTag && r.noDelete["tag"]:
		http.Error(w, "deletes are off", http.StatusMethodNotAllowed)
	case q.Method == http.MethodDelete && isTag:
		delete(r.tags[repo], ref)
		w.WriteHeader(http.StatusAccepted)
	default:
		d := ref
		if isTag {
			d = r.tags[repo][ref]
		}
		r.content(w, q, r.manifests, "manifest", repo+"@"+d)
		if q.Method == http.MethodDelete && r.manifests[repo+"@"+d] == nil {
			for tag, of := range r.tags[repo] {
				if of == d {
					delete(r.tags[repo], tag)
				}
			}
		}
	}
}

func (r *registry) list(w http.ResponseWriter, q *http.Request, repo string) {
	n, _ := strconv.Atoi(q.URL.Query().Get("n"))
	tags := []string{}
	for tag := range r.tags[repo] {
		if tag > q.URL.Query().Get("last") {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	if len(tags) > n {
		tags = tags[:n]
		w.Header().Set("Link", fmt.Sprintf(`<%s?n=%d&last=%s>; rel="next"`, q.URL.Path, n, tags[n-1]))
	}
	json.NewEncoder(w).Encode(map[string]any{"name": repo, "tags": tags})
}
