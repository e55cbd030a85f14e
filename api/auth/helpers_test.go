package auth_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

// agreed is what a mesh agrees on, in memory: the log's order is the order of
// the lock.
type agreed struct {
	mu     sync.Mutex
	index  uint64
	values map[string]auth.Setting
	broken error // what Change and Sync answer while there is no quorum

	meet func() // called by each Change before it is decided; nil: nothing
}

func newAgreed() *agreed { return &agreed{values: map[string]auth.Setting{}} }

// replica is one node's copy of what is agreed on. While it lags, it shows what
// it had.
type replica struct {
	*agreed
	version atomic.Uint64
	syncs   atomic.Int64

	mine sync.Mutex
	lag  []auth.Setting // nil: it does not lag
}

func (m *agreed) replica() *replica { return &replica{agreed: m} }

func (r *replica) Version() uint64 {
	r.mine.Lock()
	lags := r.lag != nil
	r.mine.Unlock()
	if lags {
		return r.version.Load()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.index
}

func (r *replica) List(prefix string) ([]auth.Setting, error) {
	r.mine.Lock()
	defer r.mine.Unlock()
	if r.lag != nil {
		return r.lag, nil
	}
	return r.list(prefix), nil
}

func (m *agreed) list(prefix string) []auth.Setting {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := []auth.Setting{}
	for key, s := range m.values {
		if strings.HasPrefix(key, prefix) {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b auth.Setting) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// fallBehind has the replica show what it has now until it is made to Sync.
func (r *replica) fallBehind() {
	version, all := r.Version(), r.list("")
	r.mine.Lock()
	defer r.mine.Unlock()
	r.version.Store(version)
	r.lag = all
}

func (r *replica) Sync(ctx context.Context) error {
	r.syncs.Add(1)
	r.mu.Lock()
	err := r.broken
	r.mu.Unlock()
	if err != nil {
		return err
	}
	r.mine.Lock()
	defer r.mine.Unlock()
	r.lag = nil
	return ctx.Err()
}

func (m *agreed) Change(ctx context.Context, actor string, changes ...auth.Change) (bool, error) {
	if m.meet != nil {
		m.meet()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.broken != nil {
		return false, m.broken
	}
	for _, c := range changes {
		if c.If != nil && m.values[c.Key].Revision != *c.If {
			return false, oci.ErrConflict
		}
	}
	m.index++
	for _, c := range changes {
		if c.Value == nil {
			delete(m.values, c.Key)
		} else {
			m.values[c.Key] = auth.Setting{Key: c.Key, Value: c.Value, Revision: m.index}
		}
	}
	return true, ctx.Err()
}

// put writes a setting as another version of the program might.
func (m *agreed) put(key, value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index++
	m.values[key] = auth.Setting{Key: key, Value: []byte(value), Revision: m.index}
}

func (m *agreed) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken = err
}

// clock stands still until it is told.
type clock struct{ unix atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.unix.Load()) }
func (c *clock) pass(d time.Duration)    { c.unix.Add(int64(d)) }
func newClock(at time.Time) *clock       { c := new(clock); c.unix.Store(at.UnixNano()); return c }
func morning() *clock                    { return newClock(time.Date(2026, 3, 4, 8, 0, 0, 0, time.UTC)) }
func ctxOf(t testing.TB) context.Context { return t.Context() }

const meshID = "7d9c1a52-1f0e-4c0a-9b57-0c8f6f1f9a11"

// node is one Authority over a replica.
type node struct {
	*auth.Authority
	*replica
	clock *clock
}

// newNode makes a node of the mesh; change may alter its configuration.
func newNode(t testing.TB, m *agreed, c *clock, change func(*auth.Config)) *node {
	t.Helper()
	r := m.replica()
	cfg := auth.Config{
		Settings: r, Mesh: func() string { return meshID }, Cost: 4, Now: c.now,
		Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	a, err := auth.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &node{a, r, c}
}

// The passwords of the accounts that most tests have.
const (
	rootPassword = "root's password"
	annPassword  = "ann's password"
	bobPassword  = "bob's password"
)

const housePolicy = `
rules:
  - who: [ann]
    repositories: ["team-a/**"]
    allow: [pull, push, delete, list]
  - who: ["*"]
    repositories: ["shared/*"]
    allow: [pull, list]
anonymous:
  pull: ["public/**"]
immutable:
  - repositories: ["team-a/release/**"]
    tags: ["v*"]
    except: ["*-rc*"]
`

// house is a node of a mesh with an administrator root, two users and a policy.
func house(t testing.TB) *node {
	t.Helper()
	n := newNode(t, newAgreed(), morning(), nil)
	furnish(t, n)
	return n
}

func furnish(t testing.TB, n *node) {
	t.Helper()
	for _, user := range [][2]string{{"root", rootPassword}, {"ann", annPassword}, {"bob", bobPassword}} {
		if _, _, err := n.AddUser(ctxOf(t), "test", user[0], user[1], false); err != nil {
			t.Fatal(err)
		}
	}
	n.apply(t, housePolicy)
}

func (n *node) apply(t testing.TB, text string) {
	t.Helper()
	d, err := auth.ParseDocument([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	_, revision, err := n.Document()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Apply(ctxOf(t), "test", d, revision); err != nil {
		t.Fatal(err)
	}
}

func basic(name, password string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
	r.SetBasicAuth(name, password)
	return r
}

func bearer(token string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/v2/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

// tokens is what the token endpoint answers.
type tokens struct {
	Token     string    `json:"token"`
	Access    string    `json:"access_token"`
	ExpiresIn int       `json:"expires_in"`
	IssuedAt  time.Time `json:"issued_at"`
	Scope     string    `json:"scope"`
	Refresh   string    `json:"refresh_token"`
}

// get asks for a token with name and password; name "" shows nothing.
func (n *node) get(t testing.TB, name, password string, query url.Values) (tokens, error) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/token?"+query.Encode(), nil)
	if name != "" {
		r.SetBasicAuth(name, password)
	}
	return n.ask(t, r)
}

// post asks for a token with a form.
func (n *node) post(t testing.TB, form url.Values) (tokens, error) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/token", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return n.ask(t, r)
}

func (n *node) ask(t testing.TB, r *http.Request) (tokens, error) {
	t.Helper()
	w := httptest.NewRecorder()
	if _, err := n.Token(w, r); err != nil {
		if w.Body.Len() > 0 {
			t.Errorf("answered %q beside the error %v", w.Body, err)
		}
		if challenge := w.Header().Get("WWW-Authenticate"); (challenge != "") != errors.Is(err, oci.ErrUnauthorized) {
			t.Errorf("challenge %q beside the error %v", challenge, err)
		}
		return tokens{}, err
	}
	var out tokens
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatalf("answer %q: %v", w.Body, err)
	}
	return out, nil
}

// token returns a token of the account for the scopes.
func (n *node) token(t testing.TB, name, password string, scopes ...string) string {
	t.Helper()
	out, err := n.get(t, name, password, url.Values{"scope": scopes})
	if err != nil {
		t.Fatal(err)
	}
	return out.Token
}

// may asks whether the request may do act to the repository.
func (n *node) may(r *http.Request, repo string, act auth.Action) error {
	p, err := n.Identify(r)
	if err != nil {
		return err
	}
	return n.Allow(p, repo, act)
}

// wantErr fails unless err is of the kind of want, which may be nil.
func wantErr(t testing.TB, what string, err error, want *oci.Error) {
	t.Helper()
	if want == nil && err != nil || want != nil && !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}
