package metadata

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// The questions of nodes to each other. Messages are small JSON, but for the
// command of a proposal, which is what will be in the log, and a backup.

type indexMessage struct {
	Index uint64 `json:"index"`
}

type termMessage struct {
	Term uint64 `json:"term"`
}

type clockMessage struct {
	Now int64 `json:"now"` // Unix nanoseconds
}

const (
	maxMessage  = 1 << 20          // of an answer: an error may list a manifest's missing blobs
	appliedTime = 5 * time.Second  // how long /metadata/applied waits
	bodyTime    = 30 * time.Second // how long a request's body may take
)

// errNoAnswer marks a request that may have been carried out: no answer came.
var errNoAnswer = errors.New("no answer")

// PeerHandler serves /metadata/ to the other members. It must be reachable by
// proven members only.
func (c *Catalog) PeerHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /metadata/propose", c.serve(c.servePropose))
	mux.HandleFunc("POST /metadata/readindex", c.serve(func(ctx context.Context, _ []byte) (any, error) {
		index, err := c.proofs.join(ctx)
		return indexMessage{index}, err
	}))
	mux.HandleFunc("POST /metadata/term", c.serve(func(context.Context, []byte) (any, error) {
		return termMessage{c.raft.CurrentTerm()}, nil
	}))
	mux.HandleFunc("POST /metadata/clock", c.serve(func(context.Context, []byte) (any, error) {
		return clockMessage{c.cfg.Now().UnixNano()}, nil
	}))
	mux.HandleFunc("POST /metadata/applied", c.serve(c.serveApplied))
	mux.HandleFunc("POST /metadata/restore", c.serveRestore)
	return mux
}

// serve reads a bounded body and writes answer's value or error. It becomes a
// task only with the body read, so that Close waits for no peer that hangs.
func (c *Catalog) serve(answer func(ctx context.Context, body []byte) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := readBody(w, r)
		if err != nil {
			refuse(w, err)
			return
		}
		ctx, leave, err := c.tasks.enter(r.Context())
		if err != nil {
			refuse(w, err)
			return
		}
		defer leave()
		v, err := answer(ctx, body)
		if err != nil {
			refuse(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // the asker is gone: it will ask again
	}
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	conn := http.NewResponseController(w)
	_ = conn.SetReadDeadline(time.Now().Add(bodyTime)) // a writer that knows no deadlines has no slow peer behind it
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCommand))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, oci.ErrManifestTooLarge.Wrap(err)
	}
	if err != nil {
		return nil, oci.ErrUnavailable.Because("the request ended early").Wrap(err)
	}
	_ = conn.SetReadDeadline(time.Time{}) // or it would end the request while it is answered
	return body, nil
}

// refuse writes err as nodes do. Who asks looks at the body; the status is for
// people with a trace.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusServiceUnavailable
	var e *oci.Error
	if errors.As(err, &e) && !errors.Is(err, oci.ErrUnavailable) && !errors.Is(err, errNotLeader) {
		status = http.StatusBadRequest
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(oci.EncodeError(err)) // as above
}

func (c *Catalog) servePropose(ctx context.Context, body []byte) (any, error) {
	cmd := new(wire.Command)
	if err := proto.Unmarshal(body, cmd); err != nil {
		return nil, oci.ErrUnsupported.Because("unreadable command").Wrap(err)
	}
	// An operation of a later version would stop every node that applies it; a
	// new epoch is nothing that one member brings upon the others.
	if cmd.Op == nil || cmd.GetRecover() != nil || len(cmd.ProtoReflect().GetUnknown()) > 0 || cmd.Version != 1 {
		return nil, oci.ErrUnsupported.Because("a command that this version does not know")
	}
	return c.proposeHere(ctx, cmd)
}

// serveApplied answers when this node has applied the entry asked for, or says
// how far it is when its patience ends.
func (c *Catalog) serveApplied(ctx context.Context, body []byte) (any, error) {
	var in indexMessage
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, oci.ErrUnsupported.Because("unreadable question").Wrap(err)
	}
	ctx, cancel := context.WithTimeout(ctx, appliedTime)
	defer cancel()
	_ = c.state.waitApplied(ctx, in.Index) // what it has applied tells
	return indexMessage{c.state.applied()}, nil
}

// hasApplied reports whether the member id says, before ctx ends, that it has
// applied the entry at index.
func (c *Catalog) hasApplied(ctx context.Context, id string, index uint64) bool {
	body, err := json.Marshal(indexMessage{index})
	if err != nil {
		return false
	}
	var out indexMessage
	err = c.post(ctx, id, "/metadata/applied", bytes.NewReader(body), &out)
	return err == nil && out.Index >= index
}

// post asks the member id, and decodes its answer into out.
func (c *Catalog) post(ctx context.Context, id, path string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+id+path, body)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	if rid := oci.RequestID(ctx); rid != "" {
		req.Header.Set("X-Request-Id", rid)
	}
	resp, err := c.cfg.Client.Do(req)
	if err != nil {
		return noAnswer(id, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxMessage))
	if err != nil {
		return noAnswer(id, err)
	}
	if resp.StatusCode != http.StatusOK {
		return oci.DecodeError(answer)
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return noAnswer(id, err)
	}
	return nil
}

func noAnswer(id string, err error) error {
	return oci.ErrUnavailable.Because("member %s does not answer", id).Wrap(fmt.Errorf("%w: %w", errNoAnswer, err))
}
