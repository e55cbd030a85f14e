package auth

import (
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// TokenPath is where the token endpoint is on the public port, at the URL that
// challenges name.
const TokenPath = "/token"

// service names the registry in challenges. It is the same for every mesh:
// tokens are bound to theirs by its id.
const service = "flotilla"

// basicChallenge asks for name and password, where a token cannot be asked for.
const basicChallenge = `Basic realm="flotilla", charset="UTF-8"`

// Challenge returns the value of WWW-Authenticate for an answer of 401 to a
// request that was refused for why: where to get a token for the scopes (the
// distribution project's "Token Authentication Specification"), and what was
// wrong with the one that was shown (RFC 6750, section 3.1). Scopes whose names
// are none of a repository are left out.
//
// The URL is the configured one, else made of the request's Host, which only
// the client itself is told; a Host that is no host gives a challenge without
// any URL. Headers of proxies are not believed.
func (a *Authority) Challenge(r *http.Request, why error, scopes ...Scope) string {
	realm := a.publicURL
	if realm == "" {
		if !validHost(r.Host) {
			return basicChallenge
		}
		scheme := "http"
		if r.TLS != nil {
			scheme = "https"
		}
		realm = scheme + "://" + r.Host
	}
	var texts []string
	for _, s := range scopes {
		if text := s.String(); text != "" {
			texts = append(texts, text)
		}
	}
	out := `Bearer realm="` + realm + TokenPath + `",service="` + service + `"`
	if len(texts) > 0 {
		out += `,scope="` + strings.Join(texts, " ") + `"`
	}
	return out + complaint(r, why)
}

// errScope is the cause of an ErrUnauthorized that a token which is good, and
// covers more, would cure.
var errScope = errors.New("what was shown covers too little")

// complaint says what is wrong with the token that r shows, if it shows one.
func complaint(r *http.Request, why error) string {
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case !strings.EqualFold(scheme, "Bearer"):
		return ""
	case errors.Is(why, errScope):
		return `,error="insufficient_scope"`
	}
	return `,error="invalid_token"`
}

// validHost reports whether text is a host name or an IP address, an IPv6 one in
// brackets, and perhaps a port (RFC 3986, section 3.2.2), in characters that
// mean nothing in a URL or a header.
func validHost(text string) bool {
	host := text
	if i := strings.LastIndexByte(text, ':'); i >= 0 && !strings.HasSuffix(text, "]") {
		host = text[:i]
		if port, err := strconv.ParseUint(text[i+1:], 10, 16); err != nil || port == 0 {
			return false
		}
	}
	if v6, ok := strings.CutPrefix(host, "["); ok {
		addr, err := netip.ParseAddr(strings.TrimSuffix(v6, "]"))
		return err == nil && addr.Is6() && addr.Zone() == "" && strings.HasSuffix(v6, "]")
	}
	if host == "" || len(host) > 253 || host[0] == '.' || host[0] == '-' || strings.Contains(host, "..") {
		return false
	}
	return !strings.ContainsFunc(host, func(r rune) bool {
		return !nameRune(r) && (r < 'A' || r > 'Z')
	})
}
