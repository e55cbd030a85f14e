package auth_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
	"golang.org/x/crypto/bcrypt"
)

func TestAccountsThatAreRefused(t *testing.T) {
	n := house(t)
	for name, row := range map[string]struct {
		account, password string
		want              *oci.Error
	}{
		"a name that is taken":  {"ann", annPassword, oci.ErrConflict},
		"nobody's name":         {"anonymous", annPassword, oci.ErrUnsupported},
		"everybody's name":      {"*", annPassword, oci.ErrUnsupported},
		"no name":               {"", annPassword, oci.ErrUnsupported},
		"capitals":              {"Eve", annPassword, oci.ErrUnsupported},
		"a colon":               {"e:ve", annPassword, oci.ErrUnsupported},
		"a slash":               {"../ann", annPassword, oci.ErrUnsupported},
		"a line feed":           {"eve\n", annPassword, oci.ErrUnsupported},
		"another script":        {"еve", annPassword, oci.ErrUnsupported},
		"not UTF-8":             {"eve\xff", annPassword, oci.ErrUnsupported},
		"a dot first":           {".eve", annPassword, oci.ErrUnsupported},
		"too long":              {strings.Repeat("e", 65), annPassword, oci.ErrUnsupported},
		"no password":           {"eve", "", oci.ErrUnsupported},
		"a short password":      {"eve", "1234567", oci.ErrUnsupported},
		"a long password":       {"eve", strings.Repeat("x", 73), oci.ErrUnsupported},
		"a zero byte in it":     {"eve", "12345678\x00", oci.ErrUnsupported},
		"a password no text":    {"eve", "12345678\xff", oci.ErrUnsupported},
		"the longest of both":   {strings.Repeat("e", 64), strings.Repeat("x", 72), nil},
		"a password in letters": {"zoe", "пароль из слов", nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := n.AddUser(ctxOf(t), "test", row.account, row.password, false)
			wantErr(t, "add", err, row.want)
			if row.want == nil {
				wantErr(t, "log in", n.may(basic(row.account, row.password), "shared/x", auth.Pull), nil)
			}
		})
	}
}

func TestRobots(t *testing.T) {
	n := house(t)
	if _, _, _, err := n.AddRobot(ctxOf(t), "test", "late", n.clock.now(), false); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("a robot that has expired already: %v", err)
	}
	acc, secret, everywhere, err := n.AddRobot(ctxOf(t), "test", "ci", n.clock.now().Add(time.Hour), false)
	if err != nil || !everywhere || !strings.HasPrefix(secret, "flr_") || len(secret) != 47 {
		t.Fatalf("got %+v, a secret of %d characters, %v, %v", acc, len(secret), everywhere, err)
	}
	pull := func(secret string) error { return n.may(basic("ci", secret), "shared/x", auth.Pull) }
	wantErr(t, "its secret", pull(secret), nil)
	if _, err := n.SetPassword(ctxOf(t), "test", "ci", annPassword); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a password for a robot: %v", err)
	}
	if _, _, err := n.RotateRobot(ctxOf(t), "test", "ann"); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("a secret for a user: %v", err)
	}
	rotated, _, err := n.RotateRobot(ctxOf(t), "test", "ci")
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "the secret before", pull(secret), oci.ErrUnauthorized)
	wantErr(t, "the secret after", pull(rotated), nil)
	token := n.token(t, "ci", rotated, "repository:shared/x:pull")
	n.clock.pass(time.Hour)
	wantErr(t, "the secret of an expired robot", pull(rotated), oci.ErrUnauthorized)
	n.clock.pass(-time.Second)
	wantErr(t, "a second before", pull(rotated), nil)
	wantErr(t, "its token of an hour ago", n.may(bearer(token), "shared/x", auth.Pull), oci.ErrUnauthorized)
	late := n.token(t, "ci", rotated, "repository:shared/x:pull")
	n.clock.pass(time.Second)
	wantErr(t, "a token of an expired robot", n.may(bearer(late), "shared/x", auth.Pull), oci.ErrUnauthorized)
}

// TestFirstAndLastAccountAreOne has all nodes add accounts to an empty mesh at
// once, and remove them again: exactly one is the first, and one stays.
func TestFirstAndLastAccountAreOne(t *testing.T) {
	m, c := newAgreed(), morning()
	names := []string{"a", "b", "c", "d", "e", "f"}
	nodes := make([]*node, len(names))
	admins := make([]bool, len(names))
	for i := range names {
		nodes[i] = newNode(t, m, c, nil)
	}
	// All come with what they decided about the same accounts before any counts.
	atOnce := func(do func(i int)) {
		var all, decided sync.WaitGroup
		var came atomic.Int64
		decided.Add(len(names))
		m.meet = func() {
			if came.Add(1) <= int64(len(names)) {
				decided.Done()
			}
			decided.Wait()
		}
		defer func() { m.meet = nil }()
		for i := range names {
			all.Go(func() { do(i) })
		}
		all.Wait()
	}
	atOnce(func(i int) {
		acc, _, err := nodes[i].AddUser(ctxOf(t), "test", names[i], annPassword, false)
		wantErr(t, "add "+names[i], err, nil)
		admins[i] = acc.Admin
	})
	found := 0
	for _, admin := range admins {
		if admin {
			found++
		}
	}
	if found != 1 {
		t.Errorf("%d of them are the first account", found)
	}
	left := make([]bool, len(names))
	atOnce(func(i int) {
		_, err := nodes[i].RemoveAccount(ctxOf(t), "test", names[i], false)
		left[i] = errors.Is(err, oci.ErrConflict)
	})
	all, err := nodes[0].Accounts()
	if err != nil || len(all) != 1 || nodes[0].Open() {
		t.Fatalf("after all were removed there are %+v, %v", all, err)
	}
	if _, err := nodes[1].RemoveAccount(ctxOf(t), "test", all[0].Name, true); err != nil || !nodes[0].Open() {
		t.Errorf("the last one, said so: %v", err)
	}
}

func TestAccountsShowNoSecret(t *testing.T) {
	n := house(t)
	n.put("auth/account/new", `{"kind":"user","hash":"$2a$04$x","hat":"tall"}`)
	all, err := n.Accounts()
	if err != nil || len(all) != 4 {
		t.Fatalf("got %+v, %v", all, err)
	}
	b, err := json.Marshal(all)
	if err != nil || strings.Contains(string(b), "$2") {
		t.Errorf("got %s, %v", b, err)
	}
	for _, acc := range all {
		if acc.Admin != (acc.Name == "root") || acc.Broken != (acc.Name == "new") {
			t.Errorf("got %+v", acc)
		}
	}
}

// TestWhatIsNotUnderstoodOpensNothing writes settings as a newer version, or a
// fault, might.
func TestWhatIsNotUnderstoodOpensNothing(t *testing.T) {
	hash := func(password string) string {
		b, err := bcrypt.GenerateFromPassword([]byte(password), 4)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	policy := `{"rules":[{"who":["*"],"repositories":["**"],"allow":["pull","push","admin"]}]`
	for name, row := range map[string]struct{ key, value string }{
		"an account with a field unknown":  {"auth/account/eve", `{"kind":"user","hash":"` + hash(annPassword) + `","made":"2026-01-01T00:00:00Z","locked":true}`},
		"an account of a kind unknown":     {"auth/account/eve", `{"kind":"ghost","hash":"` + hash(annPassword) + `","made":"2026-01-01T00:00:00Z"}`},
		"an account with a hash unknown":   {"auth/account/eve", `{"kind":"user","admin":true,"hash":"` + annPassword + `","made":"2026-01-01T00:00:00Z"}`},
		"an account that is no JSON":       {"auth/account/eve", `{`},
		"an account that is two":           {"auth/account/eve", `{"kind":"user","hash":"` + hash(annPassword) + `","made":"2026-01-01T00:00:00Z"} {}`},
		"an account's name that is none":   {"auth/account/Eve", `{"kind":"user","hash":"` + hash(annPassword) + `","made":"2026-01-01T00:00:00Z"}`},
		"a policy with a field unknown":    {"auth/policy", policy + `,"deny":["eve"]}`},
		"a policy with an action unknown":  {"auth/policy", strings.Replace(policy, "push", "shove", 1) + `}`},
		"a policy that is no JSON":         {"auth/policy", policy},
		"keys that are short":              {"auth/token-keys", `[{"id":"0123456789abcdef","key":"AAAA","made":"2026-01-01T00:00:00Z"}]`},
		"keys with a field unknown":        {"auth/token-keys", `[{"id":"0123456789abcdef","key":"` + strings.Repeat("A", 43) + `=","made":"2026-01-01T00:00:00Z","alg":"EdDSA"}]`},
		"no keys":                          {"auth/token-keys", `[]`},
		"an unknown setting":               {"auth/blocked", `["eve"]`},
		"an account that the rules let in": {"auth/policy", policy + `,"anonymous":{"pull":["**"]},"limits":{"uploads":-1}}`},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, newAgreed(), morning(), nil)
			if row.key != "auth/account/eve" && row.key != "auth/account/Eve" {
				if _, _, err := n.AddUser(ctxOf(t), "test", "root", rootPassword, false); err != nil {
					t.Fatal(err)
				}
			}
			n.put(row.key, row.value)
			for _, r := range []*http.Request{show("GET", "/v2/", nil), basic("eve", annPassword), basic("Eve", annPassword)} {
				for _, act := range []auth.Action{auth.Pull, auth.Push, auth.Admin} {
					wantErr(t, act.String(), errAny(n.may(r, "team-a/x", act)), oci.ErrUnauthorized)
				}
			}
			if strings.HasPrefix(row.key, "auth/account") && n.Open() {
				t.Error("open although somebody has an account")
			}
			if row.key == "auth/policy" {
				if !n.Immutable("team-a/x", "latest") {
					t.Error("a tag may move although that is not known")
				}
				if _, revision, err := n.Document(); !errors.Is(err, oci.ErrUnavailable) || revision == 0 {
					t.Errorf("the document: revision %d, %v", revision, err)
				}
				wantErr(t, "the administrator", n.may(basic("root", rootPassword), "team-a/x", auth.Push), nil)
			}
			if row.key == "auth/token-keys" {
				if _, err := n.get(t, "root", rootPassword, nil); !errors.Is(err, oci.ErrUnavailable) {
					t.Errorf("a token without keys that are understood: %v", err)
				}
				wantErr(t, "a token", n.may(bearer("a.b.c"), "x", auth.Pull), oci.ErrUnavailable)
			}
		})
	}
}

func TestHtpasswd(t *testing.T) {
	line := func(name, password string, cost int) string {
		b, err := bcrypt.GenerateFromPassword([]byte(password), cost)
		if err != nil {
			t.Fatal(err)
		}
		return name + ":" + strings.Replace(string(b), "$2a$", "$2y$", 1) + "\n"
	}
	path := filepath.Join(t.TempDir(), "htpasswd")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sam, tim := line("sam", "sam's password", 5), line("tim", "tim's password", 4)
	write("# people\r\n\r\n" + sam)
	m, c := newAgreed(), morning()
	n := newNode(t, m, c, func(cfg *auth.Config) { cfg.Htpasswd = path })
	if n.Open() {
		t.Error("open although there is a file of accounts")
	}
	n.apply(t, `rules: [{who: ["*"], repositories: ["shared/*"], allow: [pull]}]`)
	pull := func(name, password string) error { return n.may(basic(name, password), "shared/x", auth.Pull) }
	wantErr(t, "sam", pull("sam", "sam's password"), nil)
	wantErr(t, "tim, who is not there yet", pull("tim", "tim's password"), oci.ErrUnauthorized)
	token := n.token(t, "sam", "sam's password", "repository:shared/x:pull")
	other := newNode(t, m, c, func(cfg *auth.Config) { cfg.Htpasswd = path })
	wantErr(t, "sam's token at a node with the same file", other.may(bearer(token), "shared/x", auth.Pull), nil)
	without := newNode(t, m, c, nil)
	if _, _, err := without.AddUser(ctxOf(t), "test", "root", rootPassword, false); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "sam's token at a node without", without.may(bearer(token), "shared/x", auth.Pull), oci.ErrUnauthorized)

	write(sam + tim)
	c.pass(time.Second)
	wantErr(t, "tim", pull("tim", "tim's password"), nil)
	for name, bad := range map[string]string{
		"a weak hash": "eve:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\n", "no hash": "eve\n", "twice": sam + sam,
		"no file": "", "too large": strings.Repeat("#\n", 1<<19) + "#",
	} {
		if write(bad); name == "no file" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		c.pass(time.Second)
		wantErr(t, name+": sam", pull("sam", "sam's password"), nil)
		if _, err := auth.New(auth.Config{Settings: n.replica, Mesh: func() string { return meshID }, Log: discard(), Htpasswd: path}); err == nil {
			t.Errorf("%s: a node starts with it", name)
		}
	}
	write(tim)
	c.pass(time.Second)
	wantErr(t, "sam, who is gone", pull("sam", "sam's password"), oci.ErrUnauthorized)
	wantErr(t, "sam's token", n.may(bearer(token), "shared/x", auth.Pull), oci.ErrUnauthorized)
	if _, _, err := n.AddUser(ctxOf(t), "test", "tim", "the mesh's tim", false); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "the file's tim beside the mesh's", pull("tim", "tim's password"), oci.ErrUnauthorized)
	wantErr(t, "the mesh's tim", pull("tim", "the mesh's tim"), nil)
	write("")
	c.pass(time.Second)
	if n.Open() {
		t.Error("open although there is a file, if an empty one")
	}
}

func TestHtpasswdNamesTheLine(t *testing.T) {
	good := "sam:$2y$05$" + strings.Repeat("a", 53) + "\n"
	for name, bad := range map[string]string{
		"MD5": "eve:$apr1$x$y", "crypt": "eve:rqXexS6ZhobKA", "SHA-1": "eve:{SHA}x", "plain": "eve:secret",
		"argon2": "eve:$argon2id$v=19$x", "bcrypt with a fault": "eve:$2x$05$" + strings.Repeat("a", 53),
		"a dear hash": "eve:$2y$31$" + strings.Repeat("a", 53), "a cheap one": "eve:$2y$03$" + strings.Repeat("a", 53),
		"cut": "eve:$2y$05$" + strings.Repeat("a", 52), "more fields": strings.TrimSpace(good) + ":x",
		"a space before": " " + good, "capitals": "Eve:$2y$05$" + strings.Repeat("a", 53),
	} {
		path := filepath.Join(t.TempDir(), "htpasswd")
		if err := os.WriteFile(path, []byte(good+"\n"+bad+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := auth.New(auth.Config{Settings: newAgreed().replica(), Mesh: func() string { return meshID }, Log: discard(), Htpasswd: path})
		if err == nil || !strings.Contains(err.Error(), "line 3") {
			t.Errorf("%s: %v", name, err)
		} else if _, hash, _ := strings.Cut(bad, ":"); name != "capitals" && strings.Contains(err.Error(), hash) {
			t.Errorf("%s: the error tells the hash: %v", name, err)
		}
	}
}

func TestClientCertificates(t *testing.T) {
	m, c := newAgreed(), morning()
	n := newNode(t, m, c, func(cfg *auth.Config) { cfg.Certificates = true })
	if n.Open() {
		t.Error("open although certificates are accounts")
	}
	furnish(t, n)
	n.put("auth/account/broken", `{}`)
	without := newNode(t, m, c, nil)
	shows := func(name string, verified bool, until time.Duration) *http.Request {
		leaf := &x509.Certificate{Subject: pkix.Name{CommonName: name}, NotAfter: c.now().Add(until)}
		r := show(http.MethodGet, "/v2/", nil)
		r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
		if verified {
			r.TLS.VerifiedChains = [][]*x509.Certificate{{leaf, {}}}
		}
		return r
	}
	withPassword := shows("root", true, time.Hour)
	withPassword.SetBasicAuth("bob", "wrong password")
	for name, row := range map[string]struct {
		n    *node
		r    *http.Request
		want *oci.Error
	}{
		"an account of the mesh":           {n, shows("ann", true, time.Hour), nil},
		"an administrator":                 {n, shows("root", true, time.Hour), nil},
		"one that no account is of":        {n, shows("machine-7", true, time.Hour), oci.ErrDenied},
		"not verified":                     {n, shows("root", false, time.Hour), oci.ErrUnauthorized},
		"expired since the handshake":      {n, shows("root", true, -time.Second), oci.ErrUnauthorized},
		"no name":                          {n, shows("", true, time.Hour), oci.ErrUnauthorized},
		"nobody's name":                    {n, shows("anonymous", true, time.Hour), oci.ErrUnauthorized},
		"everybody's name":                 {n, shows("*", true, time.Hour), oci.ErrUnauthorized},
		"a name with a zero byte":          {n, shows("root\x00.example", true, time.Hour), oci.ErrUnauthorized},
		"an account that is not read":      {n, shows("broken", true, time.Hour), oci.ErrUnauthorized},
		"bad credentials beside it":        {n, withPassword, oci.ErrUnauthorized},
		"where certificates do not count":  {without, shows("root", true, time.Hour), oci.ErrUnauthorized},
		"a connection without certificate": {n, show(http.MethodGet, "https://x/", nil), oci.ErrUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			wantErr(t, "push", row.n.may(row.r, "team-a/x", auth.Push), row.want)
		})
	}
	wantErr(t, "what every account may", n.may(shows("machine-7", true, time.Hour), "shared/x", auth.Pull), nil)
	ask := shows("root", true, time.Hour)
	ask.URL.Path = "/token"
	if _, err := n.ask(t, ask); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("a token for a certificate: %v", err)
	}
}
