package oci

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Kind names what went wrong. It is finer than the specification's error
// codes (two kinds may share a code and differ in status), it crosses the wire
// between nodes unchanged, and the public port's status is chosen from it in
// one place, package api.
type Kind string

// Error is the error vocabulary of the whole program: each package returns one
// of the variables below, wrapped with what it was doing. The zero value is not
// used. Message and Detail reach clients, so neither holds a path, an address
// or a secret; the wrapped cause stays in this process's log.
type Error struct {
	Kind    Kind   `json:"kind"`
	Code    string `json:"code"` // distribution-spec, "Error Codes"
	Message string `json:"message"`
	Detail  any    `json:"detail,omitempty"`

	cause error
}

// The vocabulary. Compare with errors.Is, refine with Because and Wrap.
var (
	ErrNameInvalid         = &Error{Kind: "name-invalid", Code: "NAME_INVALID", Message: "invalid repository name"}
	ErrNameUnknown         = &Error{Kind: "name-unknown", Code: "NAME_UNKNOWN", Message: "repository name not known to registry"}
	ErrTagInvalid          = &Error{Kind: "tag-invalid", Code: "MANIFEST_INVALID", Message: "invalid tag"}
	ErrDigestInvalid       = &Error{Kind: "digest-invalid", Code: "DIGEST_INVALID", Message: "invalid digest"}
	ErrBlobUnknown         = &Error{Kind: "blob-unknown", Code: "BLOB_UNKNOWN", Message: "blob unknown to registry"}
	ErrUploadUnknown       = &Error{Kind: "upload-unknown", Code: "BLOB_UPLOAD_UNKNOWN", Message: "blob upload unknown to registry"}
	ErrUploadInvalid       = &Error{Kind: "upload-invalid", Code: "BLOB_UPLOAD_INVALID", Message: "blob upload invalid"}
	ErrUploadOutOfOrder    = &Error{Kind: "upload-out-of-order", Code: "BLOB_UPLOAD_INVALID", Message: "chunk out of order"}
	ErrRangeInvalid        = &Error{Kind: "range-invalid", Code: "UNSUPPORTED", Message: "the requested range is not in this content"}
	ErrSizeInvalid         = &Error{Kind: "size-invalid", Code: "SIZE_INVALID", Message: "provided length did not match content length"}
	ErrManifestUnknown     = &Error{Kind: "manifest-unknown", Code: "MANIFEST_UNKNOWN", Message: "manifest unknown to registry"}
	ErrManifestInvalid     = &Error{Kind: "manifest-invalid", Code: "MANIFEST_INVALID", Message: "manifest invalid"}
	ErrManifestTooLarge    = &Error{Kind: "manifest-too-large", Code: "SIZE_INVALID", Message: "manifest is larger than 4 MiB"}
	ErrManifestBlobUnknown = &Error{Kind: "manifest-blob-unknown", Code: "MANIFEST_BLOB_UNKNOWN", Message: "manifest references a manifest or blob unknown to registry"}
	ErrTooManyTags         = &Error{Kind: "too-many-tags", Code: "UNSUPPORTED", Message: "too many tags in one request"}
	ErrDenied              = &Error{Kind: "denied", Code: "DENIED", Message: "requested access to the resource is denied"}
	ErrUnauthorized        = &Error{Kind: "unauthorized", Code: "UNAUTHORIZED", Message: "authentication required"}
	ErrDiskFull            = &Error{Kind: "disk-full", Code: "DENIED", Message: "the registry's disk is full"}
	ErrConflict            = &Error{Kind: "conflict", Code: "CONFLICT", Message: "it was changed meanwhile"}
	ErrUnsupported         = &Error{Kind: "unsupported", Code: "UNSUPPORTED", Message: "the operation is unsupported"}
	ErrMethodNotAllowed    = &Error{Kind: "method-not-allowed", Code: "UNSUPPORTED", Message: "the method is not allowed here"}
	ErrNotFound            = &Error{Kind: "not-found", Code: "UNSUPPORTED", Message: "there is nothing at this address"}
	ErrTooManyRequests     = &Error{Kind: "too-many-requests", Code: "TOOMANYREQUESTS", Message: "too many requests"}

	// ErrUnavailable says that no proof could be had now: no leader, no
	// quorum, or a holder of the bytes out of reach. Trying again later, or
	// at another node, is right; a 404 in its place would be a lie.
	ErrUnavailable = &Error{Kind: "unavailable", Code: "UNAVAILABLE", Message: "temporarily unavailable"}

	// ErrOverdue says that bytes were placed so long before they were named
	// that they may have gone. Nothing was named; placing them anew is right.
	ErrOverdue = &Error{Kind: "overdue", Code: "UNAVAILABLE", Message: "the content came too long ago to be named: push it again"}
)

// Error implements error: the message, then the cause where there is one.
func (e *Error) Error() string {
	if e.cause != nil {
		return e.Message + ": " + e.cause.Error()
	}
	return e.Message
}

// Unwrap returns the cause, which may be nil.
func (e *Error) Unwrap() error { return e.cause }

// Is reports whether target is of the same kind, whatever its message.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Kind == e.Kind
}

// Because returns a copy of e whose message says more; clients see it.
func (e *Error) Because(format string, args ...any) *Error {
	c := *e
	c.Message = e.Message + ": " + fmt.Sprintf(format, args...)
	return &c
}

// Wrap returns a copy of e caused by err; clients do not see err.
func (e *Error) Wrap(err error) *Error {
	c := *e
	c.cause = err
	return &c
}

// WithDetail returns a copy of e whose detail, any JSON value, clients see.
func (e *Error) WithDetail(detail any) *Error {
	c := *e
	c.Detail = detail
	return &c
}

// EncodeError returns err as the JSON that nodes send each other. An error
// outside the vocabulary is sent as ErrUnavailable with its text: the other
// node should try elsewhere, and log why.
func EncodeError(err error) []byte {
	var e *Error
	if !errors.As(err, &e) {
		e = ErrUnavailable.Because("%v", err)
	}
	b, jerr := json.Marshal(e)
	if jerr != nil { // a Detail that is not JSON is the only way here
		b, _ = json.Marshal(&Error{Kind: e.Kind, Code: e.Code, Message: e.Message})
	}
	return b
}

// DecodeError rebuilds what EncodeError sent. Anything else, such as a proxy's
// page, becomes ErrUnavailable.
func DecodeError(b []byte) error {
	e := new(Error)
	if err := json.Unmarshal(b, e); err != nil || e.Kind == "" {
		return ErrUnavailable.Because("unreadable answer from a peer")
	}
	return e
}
