package mesh

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// maxList bounds the answer to a call, of which a list of candidates is the longest.
const maxList = 512 * (MaxCandidates + 1)

// call sends a member a small request and returns its answer, which must be
// complete in time. Whoever gives none is asked last for a while.
func (b *Blobs) call(ctx context.Context, wait time.Duration, method, node, path string, body []byte) ([]byte, error) {
	late, cancel := context.WithTimeoutCause(ctx, wait, errNoAnswer)
	defer cancel()
	req, err := http.NewRequestWithContext(late, method, "https://"+node+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header["Idempotency-Key"] = nil // as in do: a connection that is gone is no answer
	resp, err := b.client.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			b.silent.Store(node, time.Now())
		}
		if cause := context.Cause(late); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("ask node %s: %w", node, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, decode(resp)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxList+1))
	if err != nil || len(answer) > maxList {
		return nil, oci.ErrUnavailable.Because("half an answer from a peer").Wrap(err)
	}
	return answer, nil
}

// query is call for what a member answers as JSON, which it decodes into out.
// It sends in as JSON, or nothing where that is nil.
func (b *Blobs) query(ctx context.Context, wait time.Duration, node, path string, in, out any) error {
	method, body := http.MethodGet, []byte(nil)
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
		method = http.MethodPost
	}
	answer, err := b.call(ctx, wait, method, node, path, body)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return oci.ErrUnavailable.Because("unreadable answer from a peer").Wrap(err)
	}
	return nil
}

// answer ends a handler whose answer is v as JSON.
func (b *Blobs) answer(w http.ResponseWriter, v any) error {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // who does not read it has gone
	return nil
}
