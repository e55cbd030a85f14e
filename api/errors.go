package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
)

// statusClientGone is nginx's number for a client that left before its answer.
// It is never sent, only counted, so that such a request does not look like a
// failure of ours.
const statusClientGone = 499

// statusOf is the one table from what went wrong to what HTTP calls it, and to
// the seconds after which trying again makes sense (0: it does not).
func statusOf(kind oci.Kind) (status, retryAfter int) {
	switch kind {
	case oci.ErrNameInvalid.Kind, oci.ErrTagInvalid.Kind, oci.ErrDigestInvalid.Kind, oci.ErrSizeInvalid.Kind,
		oci.ErrUploadInvalid.Kind, oci.ErrManifestInvalid.Kind, oci.ErrManifestBlobUnknown.Kind, oci.ErrUnsupported.Kind:
		return http.StatusBadRequest, 0
	case oci.ErrUnauthorized.Kind:
		return http.StatusUnauthorized, 0
	case oci.ErrDenied.Kind:
		return http.StatusForbidden, 0
	case oci.ErrNotFound.Kind, oci.ErrNameUnknown.Kind, oci.ErrBlobUnknown.Kind,
		oci.ErrManifestUnknown.Kind, oci.ErrUploadUnknown.Kind:
		return http.StatusNotFound, 0
	case oci.ErrMethodNotAllowed.Kind:
		return http.StatusMethodNotAllowed, 0
	case oci.ErrConflict.Kind:
		return http.StatusConflict, 0
	case oci.ErrManifestTooLarge.Kind:
		return http.StatusRequestEntityTooLarge, 0
	case oci.ErrTooManyTags.Kind:
		return http.StatusRequestURITooLong, 0
	case oci.ErrUploadOutOfOrder.Kind, oci.ErrRangeInvalid.Kind:
		return http.StatusRequestedRangeNotSatisfiable, 0
	case oci.ErrTooManyRequests.Kind:
		return http.StatusTooManyRequests, 5
	case oci.ErrUnavailable.Kind, oci.ErrOverdue.Kind: // an election takes a second or two
		return http.StatusServiceUnavailable, 2
	case oci.ErrDiskFull.Kind:
		return http.StatusInsufficientStorage, 0
	}
	return http.StatusInternalServerError, 0
}

// writeError answers with err as the specification's JSON. Of an error outside
// the vocabulary clients see nothing: its text is for the log.
func writeError(w http.ResponseWriter, err error) {
	var e *oci.Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		e = oci.ErrUnavailable
	default:
		e = &oci.Error{Kind: "internal", Code: "UNKNOWN", Message: "internal error; the registry's log has more under this request's id"}
	}
	status, retryAfter := statusOf(e.Kind)
	if retryAfter > 0 && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	}
	type entry struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail,omitempty"`
	}
	type body struct {
		Errors []entry `json:"errors"`
	}
	if writeJSON(w, status, body{[]entry{{e.Code, e.Message, e.Detail}}}) != nil { // a Detail that is no JSON
		writeJSON(w, status, body{[]entry{{e.Code, e.Message, nil}}})
	}
}

// writeJSON answers with v, or fails before anything is written. A Content-Type
// that the handler has set stays.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	h := w.Header()
	if status >= 400 || h.Get("Content-Type") == "" {
		h.Set("Content-Type", "application/json")
	}
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	w.Write(b)
	return nil
}

// warn adds a warning for people; distribution-spec, "Warnings".
func warn(w http.ResponseWriter, text string) {
	w.Header().Add("Warning", "299 - "+strconv.Quote(text))
}

// warnAge tells how far an answer may lag behind the mesh, where it may.
func warnAge(w http.ResponseWriter, f metadata.Freshness) {
	switch {
	case !f.Degraded:
	case f.Age > 0:
		warn(w, "this node has lost touch with the mesh: the answer may be up to "+f.Age.Round(time.Second).String()+" old")
	default:
		warn(w, "this node has lost touch with the mesh: the answer may be old")
	}
}
