package auth_test

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

// FuzzAuthorization: no header lets anybody be somebody but one that holds that
// somebody's credentials, to the letter.
func FuzzAuthorization(f *testing.F) {
	n := house(f)
	ann := base64.StdEncoding.EncodeToString([]byte("ann:" + annPassword))
	token := n.token(f, "ann", annPassword, "repository:team-a/x:pull")
	for _, seed := range []string{
		"", "Basic", "Basic " + ann, "bAsIc   " + ann + "  ", "Basic " + ann + "\t", "Bearer " + token, "Bearer", "Bearer ..", "Basic " + ann + "\n", "Bearer " + token[:9] + "\n" + token[9:], "Negotiate x",
		"Basic " + base64.StdEncoding.EncodeToString([]byte("ann:ann\x00")), "Bearer " + strings.TrimRight(token, token[len(token)-1:]),
		"Bearer eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0Iiwia2lkIjoiMDAwMDAwMDAwMDAwMDAwMCJ9.e30.", "Digest username=\"ann\"",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		n.clock.pass(1e8) // so that guesses are checked
		r := show(http.MethodGet, "/v2/", nil)
		r.Header["Authorization"] = []string{header}
		p, err := n.Identify(r)
		switch {
		case err != nil:
			if !errors.Is(err, oci.ErrUnauthorized) && !errors.Is(err, oci.ErrUnavailable) && !errors.Is(err, oci.ErrTooManyRequests) {
				t.Errorf("an error of another kind: %v", err)
			}
		case !p.Anonymous():
			_, shown, _ := strings.Cut(header, " ")
			if shown = strings.Trim(shown, " "); p.Name() != "ann" || shown != ann && shown != token {
				t.Errorf("%q makes one %s", header, p.Name())
			}
		case header != "":
			t.Errorf("%q makes one nobody, not an error", header)
		}
		n.Challenge(r, err)
	})
}

// FuzzToken: no claims and no header are taken without the mesh's signature
// over them, and with it nothing else fails than it must.
func FuzzToken(f *testing.F) {
	n := house(f)
	token := n.token(f, "ann", annPassword, "repository:team-a/x:pull")
	key := signingKeys(f, n)[0].Key
	decoded := func(i int) []byte {
		b, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[i])
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	header, claims := decoded(0), decoded(1)
	f.Add(header, claims)
	f.Add([]byte(`{"alg":"none"}`), claims)
	f.Add(header, []byte(`{}`))
	f.Add(header, []byte(`{"exp":1e400,"nbf":-1e300,"iat":"x","aud":{},"access":[{"type":1}]}`))
	f.Add(header, []byte(strings.Repeat("[", 1000)))
	f.Add(header, []byte(`{"sub":"root","sub":"ann"}`))
	f.Add([]byte(`{"kid":"0123456789abcdef","alg":"HS256","typ":"at+jwt","crit":["exp"]}`), claims)
	f.Fuzz(func(t *testing.T, header, claims []byte) {
		text := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
		if _, err := n.Identify(bearer(mac([]byte("another key"), text))); err == nil {
			t.Errorf("%q %q is taken without the mesh's signature", header, claims)
		}
		if p, err := n.Identify(bearer(mac(key, text))); err == nil && !p.Anonymous() {
			// Somebody with the key may say much, but not get an account's rights
			// without knowing its state.
			if err := n.Allow(p, "team-a/x", auth.Pull); err == nil && p.Name() != "ann" && p.Name() != "root" {
				t.Errorf("%q %q makes one %s", header, claims, p.Name())
			}
		}
	})
}

// FuzzDocument: what is read is fit, is the same when it is written and read
// again, as YAML and as the setting, and gives nobody more than to pull.
func FuzzDocument(f *testing.F) {
	n := newNode(f, newAgreed(), morning(), nil)
	if _, _, err := n.AddUser(ctxOf(f), "test", "root", rootPassword, false); err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		wholeDocument, housePolicy, "{}", "", "rules: [", "- a", "a: &a [*a]", "limits: {uploads: 0x10}", "--- {}\n...\n--- {}",
		"anonymous: {pull: ['**']}", "? {a: b}\n: c", "limits: {accountRequests: .inf}", "immutable: [{repositories: [a], tags: [!!str 1]}]",
		"rules: [{who: [\"*\"], repositories: [\"**\"], allow: [admin]}]", "%YAML 1.1\n---\nrules: []", "\xef\xbb\xbf{}", "limits: {<<: {}}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := auth.ParseDocument(text)
		if err != nil {
			if !errors.Is(err, oci.ErrUnsupported) {
				t.Errorf("an error of another kind: %v", err)
			}
			return
		}
		b, err := d.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again, err := auth.ParseDocument(b)
		if err != nil || auth.Diff(d, again) != "" {
			t.Errorf("%q is written as %q and read as %+v, %v", text, b, again, err)
		}
		_, revision, err := n.Document()
		if err == nil {
			_, err = n.Apply(t.Context(), "fuzz", d, revision)
		}
		if err != nil {
			t.Fatal(err)
		}
		if stored, _, err := n.Document(); err != nil || auth.Diff(stored, d) != "" || !reflect.DeepEqual(stored.Limits, d.Limits) {
			t.Errorf("%q is kept as %+v, %v", text, stored, err)
		}
		for _, act := range []auth.Action{auth.Push, auth.Delete, auth.Admin} {
			if n.Allow(auth.Principal{}, "a/b", act) == nil {
				t.Errorf("%q lets anybody %s", text, act)
			}
		}
	})
}

// FuzzPolicySetting: whatever the setting holds, nobody gets more than to pull,
// and what is not understood allows nothing.
func FuzzPolicySetting(f *testing.F) {
	n := newNode(f, newAgreed(), morning(), nil)
	if _, _, err := n.AddUser(ctxOf(f), "test", "root", rootPassword, false); err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		`{}`, `null`, `[]`, `{"rules":null}`, `{"rules":[{"who":["*"],"repositories":["**"],"allow":["admin"]}]}`,
		`{"anonymous":{"pull":["**"]}}`, `{"anonymous":{"pull":["**"]},"x":1}`, `{"Anonymous":{"PULL":["**"]}}`, `{"limits":{"uploads":1e3}}`,
		`{"immutable":[{"repositories":["**"],"tags":["*"]}]}`, `{} {}`, strings.Repeat(`{"rules":[`, 500),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		n.put("auth/policy", value)
		_, _, err := n.Document()
		for _, act := range []auth.Action{auth.Pull, auth.Push, auth.Delete, auth.List, auth.Admin} {
			allowed := n.Allow(auth.Principal{}, "a/b", act) == nil
			if allowed && (err != nil || act != auth.Pull && act != auth.List) {
				t.Errorf("%q lets anybody %s", value, act)
			}
		}
		if err != nil && !n.Immutable("a/b", "c") {
			t.Errorf("%q lets tags move", value)
		}
	})
}

// FuzzScope: a token is never given for more than the policy allows.
func FuzzScope(f *testing.F) {
	n := house(f)
	for _, seed := range []string{
		"repository:shared/x:pull", "repository:team-a/x:*", "registry:catalog:*", "repository(plugin):shared/x:pull,push",
		"repository:h:5000/shared/x:pull", "::", "repository:shared/x:pull repository:team-a/x:push", "repository:shared/../team-a/x:pull",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, scope string) {
		out, err := n.get(t, "bob", bobPassword, url.Values{"scope": {scope}})
		if err != nil {
			wantErr(t, scope, err, oci.ErrUnsupported)
			return
		}
		p, err := n.Identify(bearer(out.Token))
		if err != nil {
			t.Fatal(err)
		}
		for one := range strings.FieldsSeq(out.Scope) {
			parts := strings.Split(one, ":")
			if len(parts) != 3 || one != "registry:catalog:*" && (parts[0] != "repository" || parts[2] != "pull" || n.Allow(p, parts[1], auth.Pull) != nil) {
				t.Errorf("%q is granted as %q", scope, out.Scope)
			}
		}
	})
}
