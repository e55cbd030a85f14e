package metadata

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

func TestPeerHandler(t *testing.T) {
	m := grow(t, 3, 3)
	leader, follower := m.leader(), m.follower()
	command := func(version uint32, edit func(*wire.Command)) []byte {
		cmd := memberOp(leader.member(), nil)
		cmd.Version, cmd.RequestId = version, "x"
		edit(cmd)
		b, err := proto.Marshal(cmd)
		must(t, err)
		return b
	}
	same := func(*wire.Command) {}
	for _, tc := range []struct {
		name, method, path string
		at                 *testNode
		body               []byte
		status             int
		kind               oci.Kind
	}{
		{"a proposal", "POST", "propose", leader, command(1, same), 200, ""},
		{"one that Apply refuses", "POST", "propose", leader, command(1, func(c *wire.Command) { c.GetMember().Key = []byte("x") }), 200, ""},
		{"a proposal at a follower", "POST", "propose", follower, command(1, same), 503, errNotLeader.Kind},
		{"of a later version", "POST", "propose", leader, command(2, same), 400, oci.ErrUnsupported.Kind},
		{"of nothing", "POST", "propose", leader, command(1, func(c *wire.Command) { c.Op = nil }), 400, oci.ErrUnsupported.Kind},
		{"of an operation from the future", "POST", "propose", leader, append(command(1, func(c *wire.Command) { c.Op = nil }), 0xa2, 0x06, 0x00), 400, oci.ErrUnsupported.Kind},
		{"a new epoch", "POST", "propose", leader, command(1, func(c *wire.Command) { c.Op = &wire.Command_Recover{Recover: &wire.Recover{Epoch: 2}} }), 400, oci.ErrUnsupported.Kind},
		{"a burial of nobody", "POST", "propose", leader, command(1, func(c *wire.Command) { c.Op = memberOp(Member{}, nil).Op; c.GetMember().Removed = true }), 200, ""},
		{"a backup", "POST", "restore", leader, []byte("what?"), 400, oci.ErrDenied.Kind},
		{"a backup at a follower", "POST", "restore", follower, nil, 503, errNotLeader.Kind},
		{"not a proposal", "POST", "propose", leader, []byte("what?"), 400, oci.ErrUnsupported.Kind},
		{"too large a proposal", "POST", "propose", leader, make([]byte, maxCommand+1), 400, oci.ErrManifestTooLarge.Kind},
		{"a read at a follower", "POST", "readindex", follower, nil, 503, errNotLeader.Kind},
		{"how far", "POST", "applied", follower, []byte(`{"index":1}`), 200, ""},
		{"how far, badly asked", "POST", "applied", follower, []byte(`1`), 400, oci.ErrUnsupported.Kind},
		{"a term", "POST", "term", follower, nil, 200, ""},
		{"a clock", "POST", "clock", follower, nil, 200, ""},
		{"not asked properly", "GET", "term", follower, nil, 405, ""},
		{"nothing", "POST", "nothing", follower, nil, 404, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			r := httptest.NewRequest(tc.method, "/metadata/"+tc.path, bytes.NewReader(tc.body))
			tc.at.PeerHandler().ServeHTTP(w, r)
			if w.Code != tc.status {
				t.Errorf("status %d: %s", w.Code, w.Body)
			}
			var e *oci.Error
			if tc.kind != "" && (!errors.As(oci.DecodeError(w.Body.Bytes()), &e) || e.Kind != tc.kind) {
				t.Errorf("answer %s", w.Body)
			}
		})
	}
	t.Run("a follower names the leader", func(t *testing.T) {
		_, err := follower.proposeHere(context.Background(), memberOp(leader.member(), nil))
		if got := hinted(err); got != leader.id {
			t.Errorf("%q", got)
		}
	})
}

// roundTripper is what a broken peer or a thing in between does.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A leader takes the write, and the answer is lost on its way: the repeat is
// taken for what it is.
func TestAnswerLost(t *testing.T) {
	m := grow(t, 3, 3)
	n := m.follower()
	real := n.cfg.Client.Transport
	lost := 0
	n.cfg.Client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		resp, err := real.RoundTrip(r)
		if err == nil && strings.HasSuffix(r.URL.Path, "/propose") && lost < 3 {
			lost++
			resp.Body.Close()
			return nil, errors.New("the line broke")
		}
		return resp, err
	})
	must(t, n.push("r", "x", 1))
	must(t, n.pull("r", "x", 1))
	if lost != 3 {
		t.Errorf("%d answers were lost", lost)
	}
	// Each repeat under another id would have found the tag gone.
	must(t, n.push("r", "y", 1))
	lost = 0
	if _, err := n.DeleteTag(context.Background(), "r", "y"); err != nil {
		t.Errorf("a repeated delete: %v", err)
	}
}

// Whatever a member sends, no node ends by it, and the answer is one of ours.
func FuzzPeerHandler(f *testing.F) {
	m := newMesh(f)
	n := m.add("z")
	img, body := image(1)
	for _, cmd := range []*wire.Command{
		memberOp(n.member(), &Cluster{ID: "x"}),
		manifestOp(Put{Repo: "r", Tags: []string{"x"}, Manifest: img, Body: body}),
		{Op: &wire.Command_Link{Link: &wire.Link{Repo: "r", Digest: "sha256:x", Size: -1, Mount: true}}},
		{Op: &wire.Command_Untag{Untag: &wire.Untag{Repo: "\x00", Tag: "\n"}}},
		{Op: &wire.Command_Unmanifest{Unmanifest: &wire.Unmanifest{}}},
	} {
		cmd.Version = 1
		b, err := proto.Marshal(cmd)
		if err != nil {
			f.Fatal(err)
		}
		f.Add("propose", b)
	}
	f.Add("applied", []byte(`{"index":0}`))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		if path == "applied" {
			cancel() // an index to come would be waited for
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/metadata/x", bytes.NewReader(body)).WithContext(ctx)
		r.URL.Path = "/metadata/" + path
		n.PeerHandler().ServeHTTP(w, r)
		if w.Code == http.StatusOK && !json.Valid(w.Body.Bytes()) {
			t.Errorf("answer %q", w.Body)
		}
		select {
		case err := <-n.fatal:
			t.Fatalf("the node ended: %v", err)
		default:
		}
	})
}

// A peer that sent half a question holds up nobody who closes.
func TestCloseWithHalfABody(t *testing.T) {
	m := newMesh(t)
	n := m.add("z")
	begun, half := make(chan struct{}), make(chan struct{})
	body, end := io.Pipe()
	defer end.Close()
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	served := make(chan struct{})
	go func() {
		defer close(served)
		r := httptest.NewRequest("POST", "/metadata/propose", &tellRead{r: body, begun: begun})
		n.PeerHandler().ServeHTTP(w, r)
	}()
	go func() {
		defer close(half)
		end.Write([]byte("abc"))
	}()
	<-begun
	<-half
	closed := make(chan error, 1)
	go func() { closed <- n.Catalog.Close() }()
	select {
	case err := <-closed:
		must(t, err)
	case <-time.After(patience):
		t.Error("Close waits for a peer's body")
	}
	end.Close()
	<-served
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("after Close: %d %s", w.Code, w.Body)
	}
	if len(w.set) != 2 || time.Until(w.set[0]) > bodyTime || w.set[0].IsZero() || !w.set[1].IsZero() {
		t.Errorf("read deadlines %v", w.set)
	}
}

// A body that breaks off is not one that is too large.
func TestBodyBreaksOff(t *testing.T) {
	n := newMesh(t).add("z")
	w := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "/metadata/propose", iotest.ErrReader(os.ErrDeadlineExceeded))
	n.PeerHandler().ServeHTTP(w, r)
	if err := oci.DecodeError(w.Body.Bytes()); w.Code != http.StatusServiceUnavailable || !errors.Is(err, oci.ErrUnavailable) {
		t.Errorf("%d %v", w.Code, err)
	}
}

// deadlines keeps the read deadlines that were set.
type deadlines struct {
	*httptest.ResponseRecorder
	set []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.set = append(d.set, t)
	return nil
}

// tellRead tells when the first read begins.
type tellRead struct {
	r     io.Reader
	once  sync.Once
	begun chan struct{}
}

func (t *tellRead) Read(p []byte) (int, error) {
	t.once.Do(func() { close(t.begun) })
	return t.r.Read(p)
}
