package api_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
)

// noAdmin lets nobody administer anything.
func noAdmin() api.Admin {
	o := operated{}
	return api.Admin{Check: func(string) error { return oci.ErrUnauthorized }, Members: o, Collector: o, Archive: o, Checker: o, Pinner: o}
}

// operated notes what an operator had it do.
type operated struct {
	did   *[]string
	fails bool // a backup does, midway
}

func (o operated) note(format string, args ...any) error {
	if o.did != nil {
		*o.did = append(*o.did, fmt.Sprintf(format, args...))
	}
	return nil
}

func (o operated) Drain(_ context.Context, name string, on bool) error {
	if name == "nobody" {
		return oci.ErrNotFound
	}
	return o.note("drain %s %v", name, on)
}

func (o operated) Remove(_ context.Context, name string) error { return o.note("remove %s", name) }

func (o operated) Garbage(_ context.Context, n int) (any, error) {
	return []int{n}, o.note("garbage %d", n)
}

func (o operated) Collect(context.Context) error { return o.note("collect") }

func (o operated) KeepUntagged(_ context.Context, d time.Duration) error { return o.note("keep %v", d) }

func (o operated) Backup(_ context.Context, w io.Writer, blobs bool) error {
	_, err := io.WriteString(w, "a backup")
	if o.fails {
		return errors.New("a blob cannot be read")
	}
	return errors.Join(err, o.note("backup %v", blobs))
}

func (o operated) Restore(_ context.Context, r io.Reader) (any, error) {
	b, err := io.ReadAll(r)
	return struct{}{}, errors.Join(err, o.note("restore %s", b))
}

func (o operated) BeginScrub() { _ = o.note("scrub") }

func (o operated) StateHash(context.Context) (uint64, string, error) {
	return 7, "hash", o.note("hash")
}

func (o operated) Pins(context.Context) ([]api.Pin, error) { return nil, o.note("pins") }

func (o operated) AddPin(_ context.Context, actor string, p api.Pin) (api.PinChange, error) {
	return api.PinChange{Warnings: []string{"no such zone"}}, o.note("%s pins %s", actor, p)
}

func (o operated) RemovePin(_ context.Context, actor string, p api.Pin) (api.PinChange, error) {
	if p.Zone == "nowhere" {
		return api.PinChange{}, oci.ErrNotFound
	}
	return api.PinChange{Everywhere: true}, o.note("%s unpins %s", actor, p)
}

func (o operated) PinStatus(context.Context) (any, error) { return []string{}, o.note("pin status") }

// TestAdmin asks for each thing that an operator may do, with and without the
// token for it.
func TestAdmin(t *testing.T) {
	var did []string
	n := newNode(t, func(cfg *api.Config, _ *metadata.Cluster) {
		o := operated{did: &did}
		cfg.Admin = api.Admin{Members: o, Collector: o, Archive: o, Checker: o, Pinner: o, Check: func(token string) error {
			if token != "1.good" {
				return oci.ErrUnauthorized
			}
			return nil
		}}
	})
	for _, row := range []struct {
		method, path, body string
		status             int
		did                string
	}{
		{"PUT", "members/n2/drain", "", http.StatusAccepted, "drain n2 true"},
		{"DELETE", "members/n2/drain", "", http.StatusAccepted, "drain n2 false"},
		{"PUT", "members/nobody/drain", "", http.StatusNotFound, ""},
		{"DELETE", "members/n2", "", http.StatusAccepted, "remove n2"},
		{"GET", "gc", "", http.StatusOK, "garbage 10000"},
		{"GET", "gc?n=7", "", http.StatusOK, "garbage 7"},
		{"GET", "gc?n=99999999", "", http.StatusOK, "garbage 10000"},
		{"GET", "gc?n=-1", "", http.StatusBadRequest, ""},
		{"POST", "gc", "", http.StatusAccepted, "collect"},
		{"PUT", "gc/untagged?after=24h", "", http.StatusAccepted, "keep 24h0m0s"},
		{"PUT", "gc/untagged?after=0", "", http.StatusAccepted, "keep 0s"},
		{"PUT", "gc/untagged?after=-1h", "", http.StatusBadRequest, ""},
		{"PUT", "gc/untagged", "", http.StatusBadRequest, ""},
		{"POST", "scrub", "", http.StatusAccepted, "scrub"},
		{"GET", "statehash", "", http.StatusOK, "hash"},
		{"POST", "backup", "", http.StatusOK, "backup false"},
		{"POST", "backup?blobs", "", http.StatusOK, "backup true"},
		{"POST", "restore", "archive", http.StatusOK, "restore archive"},
		{"GET", "backup", "", http.StatusMethodNotAllowed, ""},
		{"GET", "pins", "", http.StatusOK, "pins"},
		{"POST", "pins", `{"zone": "z", "repo": "a/**"}`, http.StatusCreated, "operator pins z a/**"},
		{"POST", "pins", "pin it", http.StatusBadRequest, ""},
		{"DELETE", "pins?zone=z&repo=a/**&tag=v*", "", http.StatusOK, "operator unpins z a/**:v*"},
		{"DELETE", "pins?zone=nowhere&repo=a", "", http.StatusNotFound, ""},
	} {
		t.Run(row.method+" "+row.path, func(t *testing.T) {
			ask := func(token string) *http.Response {
				t.Helper()
				req, err := http.NewRequestWithContext(t.Context(), row.method, n.url+"/flotilla/v1/"+row.path, strings.NewReader(row.body))
				if err != nil {
					t.Fatal(err)
				}
				if token != "" {
					req.Header.Set("Authorization", token)
				}
				resp, err := n.client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Fatal(err)
				}
				return resp
			}
			did = nil
			if row.status != http.StatusMethodNotAllowed {
				for _, token := range []string{"", "Bearer 1.bad", "Basic good", "good"} {
					if resp := ask(token); resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") == "" {
						t.Errorf("with %q: %s", token, resp.Status)
					}
				}
			}
			if did != nil {
				t.Errorf("without a token: %q", did)
			}
			if resp := ask("Bearer 1.good"); resp.StatusCode != row.status {
				t.Errorf("%s, want %d", resp.Status, row.status)
			}
			if got := strings.Join(did, ";"); got != row.did {
				t.Errorf("did %q, want %q", got, row.did)
			}
		})
	}
}

// TestBackupFailsMidway: what has come does not look like all there is.
func TestBackupFailsMidway(t *testing.T) {
	n := newNode(t, func(cfg *api.Config, _ *metadata.Cluster) {
		o := operated{fails: true}
		cfg.Admin = api.Admin{Members: o, Collector: o, Archive: o, Checker: o, Pinner: o, Check: func(string) error { return nil }}
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, n.url+"/flotilla/v1/backup", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer 1.good")
	resp, err := n.client.Do(req)
	if err != nil {
		return // cut off before the header was out
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%s, and the body %q ends well", resp.Status, b)
	}
}
