package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/flotilla-registry/flotilla/cmd/faults/rig"
	"github.com/flotilla-registry/flotilla/node"
)

// client speaks to the mesh as a registry's client does, one request at a node
// that the caller names. It believes no byte that it has not hashed.
type client struct {
	http *http.Client
}

func newClient() *client {
	return &client{&http.Client{Transport: &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 16, DisableCompression: true,
	}}}
}

// answer is a whole answer: its body was read to the end.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// stale reports whether the node says that its answer may be old.
func (a answer) stale() bool { return a.header.Get("Warning") != "" }

// Verdicts on requests that change something. Any other error leaves a doubt.
var (
	errRefused = errors.New("refused")   // for certain nothing was done
	errMissing = errors.New("not there") // 404: nor was there anything to do
)

// errWrong says that the bytes which came are not those that were asked for.
var errWrong = errors.New("other bytes than asked for")

func (c *client) do(ctx context.Context, method, address, mediaType string, body []byte) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if mediaType != "" {
		req.Header.Set("Content-Type", mediaType)
	}
	req.Header.Set("Accept", v1.MediaTypeImageManifest)
	return c.send(req)
}

func (c *client) send(req *http.Request) (answer, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			err = fmt.Errorf("%w: %w", errRefused, err)
		}
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(resp.Body)
	return a, err
}

// want returns nil for the status wanted, errMissing for 404, errRefused for all
// other answers that leave no doubt, and else the doubt.
func want(a answer, err error, status int) error {
	switch {
	case err != nil:
		return err
	case a.status == status:
		return nil
	case a.status == http.StatusNotFound:
		return errMissing
	case a.status/100 == 4 && a.status != http.StatusRequestTimeout:
		return fmt.Errorf("%w: %d %.200s", errRefused, a.status, a.body)
	}
	return fmt.Errorf("answered %d %.200s", a.status, a.body)
}

func at(n *rig.Node, repo, kind, reference string) string {
	return n.URL() + "/v2/" + repo + "/" + kind + "/" + reference
}

// pushBlob uploads data whole, and mounts it first from another repository
// where one is named.
func (c *client) pushBlob(ctx context.Context, n *rig.Node, repo, from string, data []byte) error {
	d := digest.FromBytes(data)
	begin := at(n, repo, "blobs", "uploads/")
	if from != "" {
		begin += "?" + url.Values{"mount": {d.String()}, "from": {from}}.Encode()
	}
	a, err := c.do(ctx, http.MethodPost, begin, "", nil)
	if err == nil && from != "" && a.status == http.StatusCreated {
		return nil
	}
	if err := want(a, err, http.StatusAccepted); err != nil {
		return fmt.Errorf("begin an upload: %w", err)
	}
	upload, err := url.Parse(n.URL())
	if err == nil {
		upload, err = upload.Parse(a.header.Get("Location"))
	}
	if err != nil {
		return fmt.Errorf("where an upload goes on: %w", err)
	}
	q := upload.Query()
	q.Set("digest", d.String())
	upload.RawQuery = q.Encode()
	a, err = c.do(ctx, http.MethodPut, upload.String(), "application/octet-stream", data)
	if err := want(a, err, http.StatusCreated); err != nil {
		return fmt.Errorf("finish an upload: %w", err)
	}
	return nil
}

func (c *client) putManifest(ctx context.Context, n *rig.Node, repo, tag string, body []byte) error {
	a, err := c.do(ctx, http.MethodPut, at(n, repo, "manifests", tag), v1.MediaTypeImageManifest, body)
	if err := want(a, err, http.StatusCreated); err != nil {
		return fmt.Errorf("put a manifest: %w", err)
	}
	return nil
}

// remove deletes a tag, or a manifest by its digest.
func (c *client) remove(ctx context.Context, n *rig.Node, repo, reference string) error {
	a, err := c.do(ctx, http.MethodDelete, at(n, repo, "manifests", reference), "", nil)
	if err := want(a, err, http.StatusAccepted); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

// manifest reads a manifest by tag or digest; errMissing is a certain 404.
func (c *client) manifest(ctx context.Context, n *rig.Node, repo, reference string) (digest.Digest, answer, error) {
	a, err := c.do(ctx, http.MethodGet, at(n, repo, "manifests", reference), "", nil)
	if err := want(a, err, http.StatusOK); err != nil {
		return "", a, fmt.Errorf("read a manifest: %w", err)
	}
	d := digest.FromBytes(a.body)
	if said := a.header.Get("Docker-Content-Digest"); said != d.String() || strings.Contains(reference, ":") && reference != said {
		return d, a, fmt.Errorf("%w: manifest %s of %s is %s, and %q by its header", errWrong, reference, repo, d, said)
	}
	return d, a, nil
}

// blob reads a blob and hashes it while it comes.
func (c *client) blob(ctx context.Context, n *rig.Node, repo string, want digest.Digest, size int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at(n, repo, "blobs", want.String()), nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("read a blob: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		if resp.StatusCode == http.StatusNotFound {
			return fmt.Errorf("read a blob: %w: %s", errMissing, text)
		}
		return fmt.Errorf("read a blob: %d %s", resp.StatusCode, text)
	}
	hash := digest.Canonical.Digester()
	got, err := io.Copy(hash.Hash(), resp.Body)
	if err != nil {
		return fmt.Errorf("read a blob, which broke off after %d of %d bytes: %w", got, size, err)
	}
	if hash.Digest() != want || got != size {
		return fmt.Errorf("%w: blob %s of %d bytes came as %d bytes of %s", errWrong, want, size, got, hash.Digest())
	}
	return nil
}

// list reads a whole list, page by page.
func (c *client) list(ctx context.Context, n *rig.Node, path, field string) ([]string, answer, error) {
	var items []string
	for address := n.URL() + path + "?n=1000"; ; {
		a, err := c.do(ctx, http.MethodGet, address, "", nil)
		if err := want(a, err, http.StatusOK); err != nil {
			return nil, a, fmt.Errorf("list %s: %w", path, err)
		}
		var page map[string]json.RawMessage
		var some []string
		err = json.Unmarshal(a.body, &page)
		if err == nil {
			err = json.Unmarshal(page[field], &some)
		}
		if err != nil {
			return nil, a, fmt.Errorf("list %s: %w", path, err)
		}
		items = append(items, some...)
		link := a.header.Get("Link")
		if link == "" {
			return items, a, nil
		}
		_, rest, _ := strings.Cut(link, "<")
		next, _, ok := strings.Cut(rest, ">")
		if !ok || len(some) == 0 {
			return nil, a, fmt.Errorf("list %s: Link %q", path, link)
		}
		address = n.URL() + next
	}
}

// status is what this program reads of a node's own status.
type status struct {
	Leader  string `json:"leader"`
	Term    uint64 `json:"term"`
	Commit  uint64 `json:"commit"`
	Applied uint64 `json:"applied"`
	Members []struct {
		ID   string `json:"id"`
		Name string `json:"name"`
		Role string `json:"role"`
	} `json:"members"`
}

func (c *client) status(ctx context.Context, n *rig.Node) (s status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	a, err := c.do(ctx, http.MethodGet, n.URL()+"/flotilla/v1/status", "", nil)
	if err := want(a, err, http.StatusOK); err != nil {
		return s, err
	}
	return s, json.Unmarshal(a.body, &s)
}

// operate asks a node for what only an operator may. The token says now, as the
// node's clock does.
func (c *client) operate(ctx context.Context, n *rig.Node, method, path, secretFile string, now time.Time) (answer, error) {
	token, err := node.OperatorToken(secretFile, now)
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, method, n.URL()+path, nil)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return c.send(req)
}

// writable reports whether a node takes writes now.
func (c *client) writable(ctx context.Context, n *rig.Node) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	a, err := c.do(ctx, http.MethodGet, n.URL()+"/readyz?write", "", nil)
	return want(a, err, http.StatusOK) == nil
}
