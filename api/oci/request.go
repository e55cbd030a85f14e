package oci

import "context"

type requestIDKey struct{}

// WithRequestID returns ctx marked with the id that names one client's request
// in the logs of every node it touches.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestIDKey{}, id)
}

// RequestID returns the id that ctx carries, or "".
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// Upload names one upload session. Repo is the repository it was started in: a
// session is unknown under any other name.
type Upload struct {
	Repo string
	ID   string
}
