package api

import (
	"crypto/rand"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

// handler answers a request or returns why it did not.
type handler func(http.ResponseWriter, *http.Request) error

// methods are the handlers of one path. That of GET answers HEAD too.
type methods map[string]handler

// routes returns the table of all paths. mux matches the path alone: methods are
// ours, since it would not answer Allow.
func (s *server) routes() http.Handler {
	// A path that is not clean is refused; cleaning would answer a redirect
	// to something that the client did not name.
	m := mux.NewRouter().SkipClean(true)
	m.NotFoundHandler = s.endpoint("none", nil)
	for _, row := range []struct {
		name, path string
		on         methods
	}{
		// mux tries them in turn, so what clients ask for most comes first.
		{"manifest", "/v2/{name}/manifests/{reference}", methods{
			"GET": s.may(auth.Pull, s.getManifest), "PUT": s.may(auth.Push, s.putManifest), "DELETE": s.may(auth.Delete, s.deleteManifest),
		}},
		{"uploads", "/v2/{name}/blobs/uploads", methods{"POST": s.may(auth.Push, s.uploading(s.startUpload))}}, // before blob, which would take "uploads" for a digest
		{"blob", "/v2/{name}/blobs/{digest}", methods{"GET": s.may(auth.Pull, s.getBlob), "DELETE": s.may(auth.Delete, s.deleteBlob)}},
		{"uploads", "/v2/{name}/blobs/uploads/", methods{"POST": s.may(auth.Push, s.uploading(s.startUpload))}},
		{"upload", "/v2/{name}/blobs/uploads/{id}", methods{
			"GET": s.may(auth.Push, s.getUpload), "PATCH": s.may(auth.Push, s.uploading(s.appendUpload)),
			"PUT": s.may(auth.Push, s.uploading(s.finishUpload)), "DELETE": s.may(auth.Push, s.cancelUpload),
		}},
		{"tags", "/v2/{name}/tags/list", methods{"GET": s.may(auth.List, s.listTags)}},
		{"referrers", "/v2/{name}/referrers/{digest}", methods{"GET": s.may(auth.Pull, s.listReferrers)}},

		{"base", "/v2", methods{"GET": s.entered(s.base)}},
		{"base", "/v2/", methods{"GET": s.entered(s.base)}},
		{"token", "/token", methods{"GET": s.token, "POST": s.token}},
		{"catalog", "/v2/_catalog", methods{"GET": s.seen(s.listRepositories)}},
		{"extensions", "/v2/_oci/ext/discover", methods{"GET": s.entered(s.listExtensions)}},
		{"extensions", "/v2/{name}/_oci/ext/discover", methods{"GET": s.may(auth.Pull, s.listExtensions)}},
		{"status", "/v2/_flotilla/mesh/status", methods{"GET": s.member(s.status)}},

		{"health", "/healthz", methods{"GET": s.alive}},
		{"ready", "/readyz", methods{"GET": s.ready}},
		{"metrics", "/metrics", methods{"GET": s.metrics}},
		{"status", "/flotilla/v1/status", methods{"GET": s.member(s.status)}},
		{"where", "/flotilla/v1/where?repo={name}&ref={reference}", methods{"GET": s.orOperator(s.where, s.may(auth.Pull, s.where))}},
		{"admin", "/flotilla/v1/members/{member:[^/]+}", methods{"DELETE": s.operator(s.removeMember)}},
		{"admin", "/flotilla/v1/members/{member:[^/]+}/drain", methods{"PUT": s.operator(s.drain), "DELETE": s.operator(s.undrain)}},
		{"admin", "/flotilla/v1/gc", methods{"GET": s.operator(s.garbage), "POST": s.operator(s.collect)}},
		{"admin", "/flotilla/v1/gc/untagged", methods{"PUT": s.operator(s.keepUntagged)}},
		{"admin", "/flotilla/v1/scrub", methods{"POST": s.operator(s.scrub)}},
		{"admin", "/flotilla/v1/statehash", methods{"GET": s.operator(s.stateHash)}},
		{"admin", "/flotilla/v1/backup", methods{"POST": s.operator(s.backup)}},
		{"admin", "/flotilla/v1/restore", methods{"POST": s.operator(s.restore)}},
		{"admin", "/flotilla/v1/accounts", methods{"GET": s.operator(s.listAccounts), "POST": s.operator(s.addAccount)}},
		{"admin", "/flotilla/v1/accounts/{account:[^/]+}", methods{"DELETE": s.operator(s.removeAccount)}},
		{"admin", "/flotilla/v1/accounts/{account:[^/]+}/secret", methods{"POST": s.operator(s.rotateAccount)}},
		{"admin", "/flotilla/v1/policy", methods{"GET": s.operator(s.getPolicy), "PUT": s.operator(s.putPolicy)}},
		{"admin", "/flotilla/v1/pins", methods{"GET": s.operator(s.listPins), "POST": s.operator(s.addPin), "DELETE": s.operator(s.removePin)}},
		{"status", "/flotilla/v1/pins/status", methods{"GET": s.overseer(s.pinStatus)}},
		{"admin", "/flotilla/v1/tokens", methods{"DELETE": s.operator(s.revokeTokens)}},
	} {
		route := m.NewRoute()
		if rest, ok := strings.CutPrefix(row.path, "/v2/{name}"); ok {
			route.MatcherFunc(inRepository(rest))
		} else if path, asks := strings.CutSuffix(row.path, "?repo={name}&ref={reference}"); asks {
			route.Path(path).MatcherFunc(byQuery)
		} else {
			route.Path(row.path)
		}
		route.Handler(s.endpoint(row.name, row.on))
	}
	return m
}

// inRepository matches /v2/, a repository's name, and rest, of which the last
// segment may be a {variable}. A name may hold any words, "blobs" and "tags" too,
// so it takes as much of the path as it can and the end says what is meant. As
// patterns of mux, which are regular expressions, these cost a quarter of a
// HEAD request.
func inRepository(rest string) mux.MatcherFunc {
	fixed, variable, _ := strings.Cut(strings.TrimSuffix(rest, "}"), "{")
	return func(r *http.Request, m *mux.RouteMatch) bool {
		path, value := r.URL.Path, ""
		if variable != "" {
			end := strings.LastIndexByte(path, '/') + 1
			path, value = path[:end], path[end:]
		}
		path, ends := strings.CutSuffix(path, fixed)
		name, begins := strings.CutPrefix(path, "/v2/")
		if !ends || !begins || name == "" || variable != "" && value == "" {
			return false
		}
		m.Vars = map[string]string{"name": name}
		if variable != "" {
			m.Vars[variable] = value
		}
		return true
	}
}

// byQuery takes the repository and the reference from the query, where those who
// ask who may do what find them as if they stood in the path.
func byQuery(r *http.Request, m *mux.RouteMatch) bool {
	query := r.URL.Query()
	m.Vars = map[string]string{"name": query.Get("repo"), "reference": query.Get("ref")}
	return true
}

// endpoint is the one wrapper around every handler: it names the request, keeps
// its deadlines rolling, turns an error into an answer, and tells log and
// metrics how it went.
func (s *server) endpoint(route string, on methods) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		start := time.Now()
		id := requestID(r)
		ctx, who := withVisit(oci.WithRequestID(r.Context(), id))
		r = r.WithContext(ctx)
		w := newResponse(rw, r, s.Idle)
		r.Body = w.body

		w.Header().Set("X-Request-Id", id)
		w.Header().Set("Flotilla-Node", s.Node)
		err := s.dispatch(w, r, on)
		midway := err != nil && w.status != 0
		if err != nil && w.status == 0 {
			writeError(w, err)
		}
		if err == nil {
			err = w.err // after the header an error can only cut the body short
		}
		w.finish()

		status := w.status
		if status == http.StatusServiceUnavailable && r.Context().Err() != nil {
			status = statusClientGone
		}
		served := Served{
			Route: route, Method: r.Method, Status: status,
			In: w.body.read.Load(), Out: w.written, Duration: time.Since(start),
		}
		if !slices.Contains(knownMethods(), r.Method) {
			served.Method = "other" // clients must not mint metric labels
		}
		s.Observe(served)
		s.log(r, id, served, err)
		s.audit(r, id, who, served)
		if midway { // a body without a length would seem to have come whole
			panic(http.ErrAbortHandler)
		}
	})
}

// dispatch checks what all paths have in common and calls the method's handler.
func (s *server) dispatch(w http.ResponseWriter, r *http.Request, on methods) error {
	if strings.HasPrefix(r.URL.Path, "/v2") {
		w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
	}
	if !plain(r.URL) {
		return oci.ErrNameInvalid.Because("only %%3A may be escaped in a path")
	}
	if on == nil {
		return oci.ErrNotFound
	}
	if name, ok := mux.Vars(r)["name"]; ok {
		if err := oci.CheckName(name); err != nil {
			return err
		}
	}
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	h, ok := on[method]
	if !ok {
		w.Header().Set("Allow", on.allow())
		return oci.ErrMethodNotAllowed
	}
	// Pulls through a mirror name the registry they mean; distribution-spec,
	// "Registry Proxying". The answer says that the name was understood.
	if r.URL.RawQuery != "" && method == http.MethodGet {
		if ns := r.URL.Query().Get("ns"); hostGrammar.MatchString(ns) {
			w.Header().Set("OCI-Namespace", ns)
		}
	}
	return h(w, r)
}

// allow returns the value of the header Allow.
func (m methods) allow() string {
	names := slices.Collect(maps.Keys(m))
	if m[http.MethodGet] != nil {
		names = append(names, http.MethodHead)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func knownMethods() []string {
	return []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
}

// plain reports whether u's path is written in full. Names, tags and ids need
// no escapes, and an escaped slash or dot is only of use to someone who wants
// two programs to read a path differently. Some clients do escape the colon of
// a digest.
func plain(u *url.URL) bool {
	for path := u.EscapedPath(); ; {
		_, after, found := strings.Cut(path, "%")
		if !found {
			return true
		}
		if len(after) < 2 || !strings.EqualFold(after[:2], "3A") {
			return false
		}
		path = after[2:]
	}
}

var (
	requestIDGrammar = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	hostGrammar      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.:_-]{0,254}$`)
)

// requestID returns the id that the client gave, where it is fit for our logs,
// else a random one.
func requestID(r *http.Request) string {
	if id := r.Header.Get("X-Request-Id"); requestIDGrammar.MatchString(id) {
		return id
	}
	return rand.Text()
}

// shorten bounds what a client can put into a line of a log.
func shorten(s string) string { return s[:min(len(s), 512)] }

// log writes the request's one line. Probes and scrapes are for debugging only.
func (s *server) log(r *http.Request, id string, served Served, err error) {
	level := slog.LevelInfo
	switch served.Route {
	case "health", "ready", "metrics", "status":
		level = slog.LevelDebug
	}
	path := shorten(r.URL.Path)
	attrs := []slog.Attr{
		slog.String("request", id), slog.String("route", served.Route),
		slog.String("method", served.Method), slog.String("path", path),
		slog.Int("status", served.Status), slog.Int64("in", served.In), slog.Int64("out", served.Out),
		slog.Duration("took", served.Duration), slog.String("remote", r.RemoteAddr),
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
		if served.Status >= 500 || served.Status < 400 { // broken here, or midway
			level = slog.LevelWarn
		}
	}
	s.Log.LogAttrs(r.Context(), level, "request", attrs...)
}
