package auth_test

import (
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/api/oci"
)

func TestChallenge(t *testing.T) {
	n := house(t)
	public := newNode(t, n.agreed, n.clock, func(cfg *auth.Config) { cfg.PublicURL = "https://registry.example/" })
	token := n.token(t, "ann", annPassword)
	const basicOnly = `Basic realm="flotilla", charset="UTF-8"`
	for name, row := range map[string]struct {
		n      *node
		host   string
		tls    bool
		bearer string
		scopes []auth.Scope
		want   string
	}{
		"plain":                {n, "localhost:5000", false, "", nil, `Bearer realm="http://localhost:5000/token",service="flotilla"`},
		"TLS":                  {n, "Registry.example", true, "", nil, `Bearer realm="https://Registry.example/token",service="flotilla"`},
		"IPv6":                 {n, "[::1]:5000", false, "", nil, `Bearer realm="http://[::1]:5000/token",service="flotilla"`},
		"configured":           {public, "evil.example", false, "", nil, `Bearer realm="https://registry.example/token",service="flotilla"`},
		"scopes":               {n, "h", false, "", []auth.Scope{{"a/b", auth.Pull | auth.Push}, {"c", auth.List}, {"", auth.List}}, `Bearer realm="http://h/token",service="flotilla",scope="repository:a/b:pull,push repository:c:pull registry:catalog:*"`},
		"a scope to inject by": {n, "h", false, "", []auth.Scope{{`a",realm="x`, auth.Pull}, {"a b", auth.Pull}, {"ok", auth.Admin}}, `Bearer realm="http://h/token",service="flotilla"`},
		"a good token":         {n, "h", false, token, nil, `Bearer realm="http://h/token",service="flotilla",error="insufficient_scope"`},
		"a bad token":          {n, "h", false, "x", nil, `Bearer realm="http://h/token",service="flotilla",error="invalid_token"`},
		"no host":              {n, "", false, "", nil, basicOnly},
		"a quote":              {n, `h",realm="http://evil`, false, "", nil, basicOnly},
		"a path":               {n, "h/evil", false, "", nil, basicOnly},
		"a user":               {n, "h@evil", false, "", nil, basicOnly},
		"a query":              {n, "h?evil", false, "", nil, basicOnly},
		"a fragment":           {n, "h#evil", false, "", nil, basicOnly},
		"a backslash":          {n, `h\evil`, false, "", nil, basicOnly},
		"a line feed":          {n, "h\r\nSet-Cookie: x", false, "", nil, basicOnly},
		"a comma":              {n, "h,evil", false, "", nil, basicOnly},
		"two ports":            {n, "h:1:2", false, "", nil, basicOnly},
		"a bad port":           {n, "h:65536", false, "", nil, basicOnly},
		"port 0":               {n, "h:0", false, "", nil, basicOnly},
		"a signed port":        {n, "h:+80", false, "", nil, basicOnly},
		"no port":              {n, "h:", false, "", nil, basicOnly},
		"brackets":             {n, "[h]:80", false, "", nil, basicOnly},
		"half a bracket":       {n, "[::1", false, "", nil, basicOnly},
		"a zone":               {n, "[fe80::1%25x]:80", false, "", nil, basicOnly},
		"another script":       {n, "аpple.example", false, "", nil, basicOnly},
		"percent":              {n, "h%2eevil", false, "", nil, basicOnly},
		"dots":                 {n, "h..evil", false, "", nil, basicOnly},
		"long":                 {n, strings.Repeat("h", 254), false, "", nil, basicOnly},
	} {
		t.Run(name, func(t *testing.T) {
			r := show(http.MethodGet, "/v2/", nil)
			r.Host = row.host
			r.Header.Set("X-Forwarded-Host", "evil.example")
			r.Header.Set("X-Forwarded-Proto", "ftp")
			r.Header.Set("Forwarded", "host=evil.example")
			if row.tls {
				r.TLS = &tls.ConnectionState{}
			}
			if row.bearer != "" {
				r.Header.Set("Authorization", "Bearer "+row.bearer)
			}
			p, err := row.n.Identify(r)
			if err == nil {
				err = row.n.Allow(p, "team-a/x", auth.Push)
			}
			if !errors.Is(err, oci.ErrUnauthorized) {
				t.Fatalf("refused with %v", err)
			}
			if got := row.n.Challenge(r, err, row.scopes...); got != row.want {
				t.Errorf("got  %s\nwant %s", got, row.want)
			}
		})
	}
}

func TestPublicURL(t *testing.T) {
	for url, good := range map[string]bool{
		"": true, "https://registry.example": true, "http://10.0.0.1:5000/": true, "https://[::1]:5000": true,
		"registry.example": false, "https://": false, "ftp://h": false, "https://h/registry": false, "https://u:p@h": false,
		"https://h?x": false, "https://h#": false, "https://h\"": false, "javascript:alert(1)": false, "//h": false,
	} {
		_, err := auth.New(auth.Config{Settings: newAgreed().replica(), Mesh: func() string { return meshID }, Log: discard(), PublicURL: url, Cost: 4})
		if (err == nil) != good {
			t.Errorf("%q: %v", url, err)
		}
	}
}
