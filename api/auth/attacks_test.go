package auth_test

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

// The tests here are attempts to get what one may not have. None may succeed.

// signingKeys returns the mesh's keys, as somebody who broke into a node has them.
func signingKeys(t testing.TB, n *node) (keys []struct {
	ID   string    `json:"id"`
	Key  []byte    `json:"key"`
	Made time.Time `json:"made"`
}) {
	t.Helper()
	for _, s := range n.list("auth/token-keys") {
		if err := json.Unmarshal(s.Value, &keys); err != nil {
			t.Fatal(err)
		}
	}
	if len(keys) == 0 {
		t.Fatal("the mesh has no keys")
	}
	return keys
}

func part(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// open returns the header and claims of a token, whatever its signature.
func open(t testing.TB, token string) (header, claims map[string]any) {
	t.Helper()
	parts := strings.Split(token, ".")
	for i, into := range []*map[string]any{&header, &claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return header, claims
}

func mac(key []byte, signed string) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

// with returns a copy of m in which key has another value; nil removes it.
func with(m map[string]any, key string, value any) map[string]any {
	m = maps.Clone(m)
	if m[key] = value; value == nil {
		delete(m, key)
	}
	return m
}

// TestAttackForgedTokens alters what a good token says and signs it anew, with
// the mesh's key where the claims alone must give it away, and otherwise not.
func TestAttackForgedTokens(t *testing.T) {
	n := house(t)
	good := n.token(t, "ann", annPassword, "repository:team-a/x:pull,push")
	header, claims := open(t, good)
	key := signingKeys(t, n)[0].Key
	parts := strings.Split(good, ".")
	signed := func(header, claims map[string]any) string {
		return mac(key, part(t, header)+"."+part(t, claims))
	}
	if err := n.may(bearer(signed(header, claims)), "team-a/x", auth.Push); err != nil {
		t.Fatalf("the forger's own signature does not do, so that nothing here tells anything: %v", err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rs := part(t, with(header, "alg", "RS256")) + "." + parts[1]
	sum := sha256.Sum256([]byte(rs))
	rsSignature, err := rsa.SignPKCS1v15(rand.Reader, rsaKey, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	now := n.clock.now().Unix()
	widened := []any{map[string]any{"type": "repository", "name": "team-a/y", "actions": []string{"*"}}}
	for name, token := range map[string]string{
		"alg none":                      part(t, with(header, "alg", "none")) + "." + parts[1] + ".",
		"alg none, with the signature":  part(t, with(header, "alg", "none")) + "." + parts[1] + "." + parts[2],
		"alg NoNe":                      part(t, with(header, "alg", "NoNe")) + "." + parts[1] + ".",
		"no alg":                        signed(with(header, "alg", nil), claims),
		"alg RS256 signed by HMAC":      signed(with(header, "alg", "RS256"), claims),
		"alg RS256 with a key pair":     rs + "." + base64.RawURLEncoding.EncodeToString(rsSignature),
		"alg HS512 of the same key":     signed(with(header, "alg", "HS512"), claims),
		"alg not a string":              signed(with(header, "alg", []string{"HS256"}), claims),
		"an empty key":                  mac(nil, parts[0]+"."+parts[1]),
		"the key's id as the key":       mac([]byte(header["kid"].(string)), parts[0]+"."+parts[1]),
		"claims widened, not signed":    parts[0] + "." + part(t, with(claims, "access", widened)) + "." + parts[2],
		"no signature":                  parts[0] + "." + parts[1] + ".",
		"no third part":                 parts[0] + "." + parts[1],
		"four parts":                    good + ".x",
		"signature cut":                 good[:len(good)-4],
		"padding":                       good + "=",
		"a key of one's own in jwk":     signed(with(header, "jwk", map[string]string{"kty": "oct", "k": "AAAA"}), claims),
		"a critical header":             signed(with(header, "crit", []string{"b64"}), claims),
		"kid a path":                    signed(with(header, "kid", "../../dev/null"), claims),
		"kid in upper case":             signed(with(header, "kid", strings.ToUpper(header["kid"].(string)+"A")), claims),
		"no kid":                        signed(with(header, "kid", nil), claims),
		"typ JWT":                       signed(with(header, "typ", "JWT"), claims),
		"typ of refresh tokens":         signed(with(header, "typ", "rt+jwt"), claims),
		"no typ":                        signed(with(header, "typ", nil), claims),
		"of another mesh":               signed(header, with(claims, "iss", "another")),
		"for another mesh":              signed(header, with(claims, "aud", []string{"another"})),
		"for nobody":                    signed(header, with(claims, "aud", nil)),
		"by nobody":                     signed(header, with(claims, "iss", nil)),
		"expired":                       signed(header, with(claims, "exp", now-61)),
		"never expiring":                signed(header, with(claims, "exp", nil)),
		"expiring in words":             signed(header, with(claims, "exp", "2099-01-01")),
		"expiring at minus infinity":    signed(header, with(claims, "exp", -1e300)),
		"not yet valid":                 signed(header, with(claims, "nbf", now+61)),
		"valid from no time":            signed(header, with(claims, "nbf", nil)),
		"made in the future":            signed(header, with(claims, "iat", now+61)),
		"of an account that is not":     signed(header, with(claims, "sub", "eve")),
		"of another's account":          signed(header, with(claims, "sub", "root")),
		"of the account before":         signed(header, with(claims, "acc", "0")),
		"of no state of the account":    signed(header, with(claims, "acc", nil)),
		"of a name that is none":        signed(header, with(claims, "sub", "ann\x00")),
		"of a name in capitals":         signed(header, with(claims, "sub", "Ann")),
		"subject a list":                signed(header, with(claims, "sub", []string{"ann"})),
		"claims null":                   mac(key, parts[0]+"."+part(t, nil)),
		"claims a list":                 mac(key, parts[0]+"."+part(t, []any{claims})),
		"claims deeply nested":          mac(key, parts[0]+"."+base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat("[", 10_000)))),
		"header deeply nested":          mac(key, base64.RawURLEncoding.EncodeToString([]byte(strings.Repeat(`{"a":`, 2_000)))+"."+parts[1]),
		"oversized":                     signed(header, with(claims, "jti", strings.Repeat("x", 1<<20))),
		"empty":                         "",
		"dots":                          "..",
		"many dots":                     strings.Repeat(".", 10_000),
		"of nobody, but with a subject": signed(header, with(with(claims, "sub", ""), "access", widened)),
	} {
		t.Run(name, func(t *testing.T) {
			for _, repo := range []string{"team-a/x", "team-a/y"} {
				wantErr(t, "push to "+repo, n.may(bearer(token), repo, auth.Push), oci.ErrUnauthorized)
			}
		})
	}
}

func TestAttackTokenOfOneRepositoryAtAnother(t *testing.T) {
	n := house(t)
	token := n.token(t, "ann", annPassword, "repository:team-a/x:pull,push")
	for _, repo := range []string{"team-a/y", "team-a", "team-a/x/y", "team-a/xx", "public/x", "TEAM-A/X", "team-a/x/", ""} {
		wantErr(t, "pull of "+repo, errAny(n.may(bearer(token), repo, auth.Pull)), oci.ErrUnauthorized)
	}
}

// errAny turns a denial into ErrUnauthorized, where either will do.
func errAny(err error) error {
	if errors.Is(err, oci.ErrDenied) {
		return oci.ErrUnauthorized
	}
	return err
}

func TestAttackScopeWidening(t *testing.T) {
	n := house(t)
	for name, row := range map[string]struct {
		scopes []string
		want   string
	}{
		"another's repository":        {[]string{"repository:team-a/x:pull,push"}, ""},
		"more than the rule allows":   {[]string{"repository:shared/x:pull,push,delete"}, "repository:shared/x:pull"},
		"everything":                  {[]string{"repository:shared/x:*"}, "repository:shared/x:pull"},
		"a pattern as a name":         {[]string{"repository:**:pull", "repository:shared/*:pull"}, ""},
		"a path out":                  {[]string{"repository:shared/../team-a/x:pull", "repository:shared/%2e%2e/x:pull"}, ""},
		"capitals and other scripts":  {[]string{"repository:Shared/x:pull", "repository:shared/х:pull", "REPOSITORY:shared/x:pull"}, ""},
		"the registry itself":         {[]string{"registry:mesh:*", "registry:*:*", "registry:admin:admin"}, ""},
		"admin":                       {[]string{"repository:shared/x:admin,list"}, ""},
		"a host with a port":          {[]string{"repository:localhost:5000/shared/x:pull"}, ""},
		"two in one, by line feed":    {[]string{"repository:shared/x:pull\nrepository:team-a/x:pull"}, "repository:shared/x:pull"},
		"two that add up":             {[]string{"repository:shared/x:pull", "repository:shared/x:push"}, "repository:shared/x:pull"},
		"no colons":                   {[]string{"repository", "repository:", "repository::", "repository:::", ":::"}, ""},
		"the class of other contents": {[]string{"repository(plugin):shared/x:pull"}, "repository:shared/x:pull"},
		"the catalogue":               {[]string{"registry:catalog:*"}, "registry:catalog:*"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := n.get(t, "bob", bobPassword, url.Values{"scope": row.scopes})
			if err != nil || out.Scope != row.want {
				t.Fatalf("got scope %q, %v, want %q", out.Scope, err, row.want)
			}
			for _, repo := range []string{"team-a/x", "shared/x"} {
				wantErr(t, "push to "+repo, errAny(n.may(bearer(out.Token), repo, auth.Push)), oci.ErrUnauthorized)
			}
			wantErr(t, "the mesh", errAny(n.may(bearer(out.Token), "", auth.Admin)), oci.ErrUnauthorized)
		})
	}
	if _, err := n.get(t, "bob", bobPassword, url.Values{"scope": slices.Repeat([]string{"repository:shared/x:pull"}, 33)}); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("33 scopes: %v", err)
	}
	// An administrator's token has what was asked for, and never the mesh.
	root := n.token(t, "root", rootPassword, "repository:a:*")
	wantErr(t, "all of a", n.may(bearer(root), "a", auth.Delete), nil)
	wantErr(t, "b", n.may(bearer(root), "b", auth.Pull), oci.ErrUnauthorized)
	wantErr(t, "the mesh", n.may(bearer(root), "a", auth.Admin), oci.ErrUnauthorized)
}

func TestAttackTokenAfterItsTime(t *testing.T) {
	n := house(t)
	token := n.token(t, "ann", annPassword, "repository:team-a/x:pull")
	for _, row := range []struct {
		pass time.Duration
		want *oci.Error
	}{{0, nil}, {5*time.Minute + 59*time.Second, nil}, {time.Second, oci.ErrUnauthorized}, {-8 * time.Minute, oci.ErrUnauthorized}} {
		n.clock.pass(row.pass)
		// Twice: what is remembered of a token must not outlive it.
		for range 2 {
			wantErr(t, n.clock.now().String(), n.may(bearer(token), "team-a/x", auth.Pull), row.want)
		}
	}
}

func TestAttackRefreshTokenAsAccessAndBack(t *testing.T) {
	n := house(t)
	out, err := n.get(t, "ann", annPassword, url.Values{"offline_token": {"true"}, "scope": {"repository:team-a/x:pull"}})
	if err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a pull with a refresh token", n.may(bearer(out.Refresh), "team-a/x", auth.Pull), oci.ErrUnauthorized)
	refresh := func(token string) error {
		_, err := n.post(t, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}})
		return err
	}
	wantErr(t, "a refresh token", refresh(out.Refresh), nil)
	wantErr(t, "an access token as a refresh token", refresh(out.Token), oci.ErrUnauthorized)
	wantErr(t, "a remembered access token as a refresh token", errors.Join(n.may(bearer(out.Token), "team-a/x", auth.Pull), refresh(out.Token)), oci.ErrUnauthorized)
	if _, err := n.SetPassword(ctxOf(t), "test", "ann", "another password"); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a refresh token from before the password changed", refresh(out.Refresh), oci.ErrUnauthorized)
}

func TestAttackTokenOutlivesItsAccount(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *node) error{
		"another password": func(t *testing.T, n *node) error {
			_, err := n.SetPassword(ctxOf(t), "test", "ann", "another password")
			return err
		},
		"removed": func(t *testing.T, n *node) error {
			_, err := n.RemoveAccount(ctxOf(t), "test", "ann", false)
			return err
		},
		"removed, and made again with the same password": func(t *testing.T, n *node) error {
			_, err := n.RemoveAccount(ctxOf(t), "test", "ann", false)
			_, _, again := n.AddUser(ctxOf(t), "test", "ann", annPassword, false)
			return errors.Join(err, again)
		},
		"keys replaced": func(t *testing.T, n *node) error {
			_, err := n.ReplaceKeys(ctxOf(t), "test")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := house(t)
			token := n.token(t, "ann", annPassword, "repository:team-a/x:pull")
			p, err := n.Identify(bearer(token))
			if err != nil {
				t.Fatal(err)
			}
			if err := end(t, n); err != nil {
				t.Fatal(err)
			}
			wantErr(t, "the token", n.may(bearer(token), "team-a/x", auth.Pull), oci.ErrUnauthorized)
			if name != "keys replaced" { // a request under way was let in by them
				wantErr(t, "a request under way", n.Allow(p, "team-a/x", auth.Pull), oci.ErrUnauthorized)
			}
		})
	}
}

func TestAttackTokenWithWhatPolicyTookAway(t *testing.T) {
	n := house(t)
	token := n.token(t, "ann", annPassword, "repository:team-a/x:pull,push")
	anonymous := n.token(t, "", "", "repository:public/x:pull")
	wantErr(t, "before", n.may(bearer(token), "team-a/x", auth.Push), nil)
	wantErr(t, "anybody before", n.may(bearer(anonymous), "public/x", auth.Pull), nil)
	n.apply(t, `rules: [{who: [ann], repositories: ["team-a/**"], allow: [pull]}]`)
	wantErr(t, "a push after", n.may(bearer(token), "team-a/x", auth.Push), oci.ErrDenied)
	wantErr(t, "a pull after", n.may(bearer(token), "team-a/x", auth.Pull), nil)
	wantErr(t, "anybody after", n.may(bearer(anonymous), "public/x", auth.Pull), oci.ErrUnauthorized)
	if _, err := n.get(t, "", "", nil); !errors.Is(err, oci.ErrUnauthorized) {
		t.Errorf("a token for nobody where nobody may do anything: %v", err)
	}
}

func TestAttackAuthorizationHeaders(t *testing.T) {
	n := house(t)
	encode := base64.StdEncoding.EncodeToString
	ann := encode([]byte("ann:" + annPassword))
	for name, values := range map[string][]string{
		"two headers, both good":       {"Basic " + ann, "Basic " + ann},
		"a good one after another":     {"Bearer x", "Basic " + ann},
		"two in one":                   {"Basic " + ann + ", Basic " + ann},
		"unknown scheme":               {"Negotiate " + ann},
		"no scheme":                    {ann},
		"scheme alone":                 {"Basic"},
		"a tab between":                {"Basic\t" + ann},
		"not base64":                   {"Basic ann:" + annPassword},
		"base64 for URLs":              {"Basic " + base64.RawURLEncoding.EncodeToString([]byte("ann:"+annPassword+"??>"))},
		"bits left over":               {"Basic " + strings.TrimRight(encode([]byte("ann:"+annPassword)), "=") + "B"},
		"no colon":                     {"Basic " + encode([]byte("ann"))},
		"no password":                  {"Basic " + encode([]byte("ann:"))},
		"no name":                      {"Basic " + encode([]byte(":"+annPassword))},
		"capitals":                     {"Basic " + encode([]byte("Ann:"+annPassword))},
		"a space after the name":       {"Basic " + encode([]byte("ann :"+annPassword))},
		"a zero byte in the password":  {"Basic " + encode([]byte("ann:"+annPassword+"\x00"))},
		"the password over and over":   {"Basic " + encode([]byte("ann:"+annPassword+"\x00"+annPassword))},
		"a name with a zero byte":      {"Basic " + encode([]byte("ann\x00:"+annPassword))},
		"look-alike letters":           {"Basic " + encode([]byte("аnn:"+annPassword))},
		"the name nobody has":          {"Basic " + encode([]byte("anonymous:"+annPassword))},
		"everybody's name":             {"Basic " + encode([]byte("*:"+annPassword))},
		"a megabyte":                   {"Basic " + encode([]byte("ann:"+strings.Repeat("x", 1<<20)))},
		"a megabyte of bearer":         {"Bearer " + strings.Repeat("x", 1<<20)},
		"bearer of a password":         {"Bearer " + ann},
		"a password longer than any":   {"Basic " + encode([]byte("ann:"+strings.Repeat("x", 73)))},
		"the hash as the password":     {"Basic " + encode([]byte("ann:$2a$04$abcdefghijklmnopqrstuv"))},
		"credentials of another meant": {"Basic " + encode([]byte("ann:ann:"+annPassword))},
	} {
		t.Run(name, func(t *testing.T) {
			r := show(http.MethodGet, "/v2/", nil)
			r.Header["Authorization"] = values
			// Not even what anybody may do: bad credentials are an error.
			wantErr(t, "pull", n.may(r, "public/x", auth.Pull), oci.ErrUnauthorized)
		})
	}
}

// TestAttackLongPasswordByItsPrefix tries what bcrypt alone would let pass: it
// looks at 72 bytes only.
func TestAttackLongPasswordByItsPrefix(t *testing.T) {
	n := house(t)
	long := strings.Repeat("0123456789ab", 6)
	if _, err := n.SetPassword(ctxOf(t), "test", "ann", long); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "72 bytes", n.may(basic("ann", long), "team-a/x", auth.Pull), nil)
	wantErr(t, "73 bytes", n.may(basic("ann", long+"x"), "team-a/x", auth.Pull), oci.ErrUnauthorized)
	wantErr(t, "71 bytes", n.may(basic("ann", long[:71]), "team-a/x", auth.Pull), oci.ErrUnauthorized)
	if _, err := n.SetPassword(ctxOf(t), "test", "ann", long+"x"); !errors.Is(err, oci.ErrUnsupported) {
		t.Errorf("a password of 73 bytes: %v", err)
	}
}

// TestAttackUnknownUserByTime compares how long a wrong password takes with how
// long an unknown name does, by turns, as medians of 1,000 tries. A busy machine
// can spoil a round, so that one of five has to do; a name that is told apart
// without a hash would fail them all by far.
func TestAttackUnknownUserByTime(t *testing.T) {
	const tries, rounds = 500, 5 // of each
	n := house(t)
	once := func(name string) time.Duration {
		n.clock.pass(time.Second) // so that it is never one password too many
		r := basic(name, "wrong password")
		began := time.Now()
		if _, err := n.Identify(r); !errors.Is(err, oci.ErrUnauthorized) {
			t.Fatalf("%s: %v", name, err)
		}
		return time.Since(began)
	}
	var difference float64
	for range rounds {
		var known, unknown []time.Duration
		for range tries {
			known = append(known, once("ann"))
			unknown = append(unknown, once("eve"))
		}
		slices.Sort(known)
		slices.Sort(unknown)
		difference = float64(unknown[tries/2])/float64(known[tries/2]) - 1
		if difference > -0.1 && difference < 0.1 {
			return
		}
	}
	t.Errorf("an unknown name takes %+.0f %% of the time of a wrong password", 100*difference)
}

func TestAttackFormOfTheTokenEndpoint(t *testing.T) {
	n := house(t)
	good := "grant_type=password&username=ann&password=" + url.QueryEscape(annPassword)
	for name, row := range map[string]struct {
		method, target, kind, body string
		want                       *oci.Error
	}{
		"good":                            {"POST", "/token", "application/x-www-form-urlencoded", good, nil},
		"the password in the query":       {"POST", "/token?" + good, "application/x-www-form-urlencoded", "", oci.ErrUnsupported},
		"half of it in the query":         {"POST", "/token?password=" + url.QueryEscape(annPassword), "application/x-www-form-urlencoded", "grant_type=password&username=ann", oci.ErrUnauthorized},
		"a get with the password":         {"GET", "/token?" + good, "", "", nil}, // nobody's token
		"two names":                       {"POST", "/token", "application/x-www-form-urlencoded", good + "&username=root", oci.ErrUnsupported},
		"two grant types":                 {"POST", "/token", "application/x-www-form-urlencoded", good + "&grant_type=refresh_token", oci.ErrUnsupported},
		"another grant type":              {"POST", "/token", "application/x-www-form-urlencoded", strings.Replace(good, "=password", "=client_credentials", 1), oci.ErrUnsupported},
		"as JSON":                         {"POST", "/token", "application/json", `{"grant_type":"password"}`, oci.ErrUnsupported},
		"as multipart":                    {"POST", "/token", "multipart/form-data; boundary=x", "--x--", oci.ErrUnsupported},
		"no type":                         {"POST", "/token", "", good, oci.ErrUnsupported},
		"too large":                       {"POST", "/token", "application/x-www-form-urlencoded", good + "&x=" + strings.Repeat("x", 64<<10), oci.ErrUnsupported},
		"semicolons":                      {"POST", "/token", "application/x-www-form-urlencoded", strings.ReplaceAll(good, "&", ";"), oci.ErrUnsupported},
		"bad escapes":                     {"POST", "/token", "application/x-www-form-urlencoded", good + "&x=%zz", oci.ErrUnsupported},
		"bad escapes in a query":          {"GET", "/token?scope=%zz", "", "", oci.ErrUnsupported},
		"another method":                  {"PUT", "/token", "application/x-www-form-urlencoded", good, oci.ErrMethodNotAllowed},
		"a refresh token that is nothing": {"POST", "/token", "application/x-www-form-urlencoded", "grant_type=refresh_token", oci.ErrUnauthorized},
	} {
		t.Run(name, func(t *testing.T) {
			r := show(row.method, row.target, strings.NewReader(row.body))
			if row.kind != "" {
				r.Header.Set("Content-Type", row.kind)
			}
			out, err := n.ask(t, r)
			wantErr(t, row.method, err, row.want)
			if name == "a get with the password" {
				p, err := n.Identify(bearer(out.Token))
				if err != nil || !p.Anonymous() {
					t.Errorf("got a token of %s, %v", p.Name(), err)
				}
			}
		})
	}
}

// TestAttackUnknownKeysAsAmplifier sends tokens with made-up keys, each of which
// would have this node ask the mesh.
func TestAttackUnknownKeysAsAmplifier(t *testing.T) {
	n := house(t)
	header, claims := open(t, n.token(t, "ann", annPassword))
	before := n.syncs.Load()
	const sent = 2000
	for range sent {
		token := mac([]byte("x"), part(t, with(header, "kid", "0123456789abcdef"))+"."+part(t, claims))
		if err := n.may(bearer(token), "team-a/x", auth.Pull); !errors.Is(err, oci.ErrUnauthorized) && !errors.Is(err, oci.ErrUnavailable) {
			t.Fatalf("got %v", err)
		}
	}
	if asked := n.syncs.Load() - before; asked > 20 {
		t.Errorf("the mesh was asked %d times at one moment for %d tokens", asked, sent)
	}
}
