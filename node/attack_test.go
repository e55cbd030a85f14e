package node

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/url"
	"testing"
	"time"
)

// TestPeerEndpointsOnThePublicPort: nothing that nodes ask of each other is
// answered there, however it is spelled, with an operator's token and with a
// member's certificate too.
func TestPeerEndpointsOnThePublicPort(t *testing.T) {
	cert, key := writePair(t, t.TempDir(), 1)
	c := newCluster(t, 1, func(cfg *Config) { cfg.TLSCert, cfg.TLSKey = cert, key })
	n := c.nodes[0]
	client := &http.Client{
		Transport: &http.Transport{TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true, Certificates: []tls.Certificate{shownBy(n.trust)},
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	get := func(method, path, host string) int {
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+n.Addr(), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.URL.Opaque, req.Host = path, host
		req.Header.Set("Authorization", "Bearer "+c.token(time.Now()))
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if got := get(http.MethodGet, "/v2/", n.Addr()); got != http.StatusOK {
		t.Fatalf("/v2/ on the public port: %d", got)
	}
	const blob = "/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, path := range []string{
		helloPath, joinPath, promisePath, collectPath, blob, "/blobs/", "/uploads/", "/uploads/0",
		"/metadata/propose", "/metadata/readindex", "/metadata/term", "/metadata/clock", "/metadata/applied", "/metadata/restore",
		"/%6eode/hello", "/node%2fhello", "//node/hello", "/./node/hello", "/v2/../node/hello", "/v2/%2e%2e/node/hello",
		"/flotilla/v1/../../metadata/term", "/NODE/hello", "https://" + n.ID() + helloPath,
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut} {
			for _, host := range []string{n.Addr(), n.ID()} {
				if got := get(method, path, host); got < 300 || got >= 500 || got == http.StatusUnauthorized || got == http.StatusForbidden {
					t.Errorf("%s %s of host %s: %d, want that there is no such thing", method, path, host, got)
				}
			}
		}
	}
	for _, proto := range []string{protoRaft, "flotilla/1"} {
		conn, err := tls.Dial("tcp", n.Addr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}, Certificates: []tls.Certificate{shownBy(n.trust)}})
		if err == nil {
			_ = conn.Close()
			t.Errorf("the public port speaks %q", conn.ConnectionState().NegotiatedProtocol)
		}
	}
}

// TestPeerCertificateOfAnotherNode: what a node shows in every handshake is
// public, and of no use to anybody else; nor can a node make certificates.
func TestPeerCertificateOfAnotherNode(t *testing.T) {
	c := newCluster(t, 2)
	n, member := c.nodes[0], c.nodes[1]
	mine := n.catalog.Cluster()
	_, own, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(by *x509.Certificate, key ed25519.PrivateKey, id string) []byte {
		template := certificate(id)
		template.URIs = []*url.URL{{Scheme: "flotilla", Host: id, Path: "/" + mine.ID + "/1"}}
		der, err := x509.CreateCertificate(rand.Reader, template, by, own.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	shown, err := x509.ParseCertificate(shownBy(member.trust).Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name  string
		chain [][]byte
		key   ed25519.PrivateKey
		taken bool
	}{
		{"a member's, with its key", [][]byte{shown.Raw}, member.trust.key, true},
		{"a member's, without its key", [][]byte{shown.Raw}, own, false},
		{"a member's behind one of its own", [][]byte{signed(certificate("flotilla mesh"), own, newUUID()), shown.Raw}, own, false},
		{"one made with a member's", [][]byte{signed(shown, member.trust.key, newUUID()), shown.Raw}, own, false},
		{"one that names a member, made by itself", [][]byte{signed(certificate("flotilla mesh"), own, member.ID())}, own, false},
		{"none", nil, nil, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			conf := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protoHTTP}}
			if row.chain != nil {
				conf.Certificates = []tls.Certificate{{Certificate: row.chain, PrivateKey: row.key}}
			}
			client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
			resp, err := client.Get("https://" + n.port.ln.Addr().String() + helloPath)
			if err == nil {
				_ = resp.Body.Close()
			}
			if taken := err == nil; taken != row.taken {
				t.Errorf("taken: %v, %v; want %v", taken, err, row.taken)
			}
		})
	}
	d := &dialer{trust: n.trust, resolve: func(string) (string, bool) { return member.port.ln.Addr().String(), true }}
	if conn, err := d.dial(t.Context(), newUUID(), protoHTTP, false); err == nil {
		_ = conn.Close()
		t.Error("a member passes for another node at its address")
	}
	foreign := newCluster(t, 1)
	d = &dialer{trust: n.trust, resolve: func(string) (string, bool) { return foreign.nodes[0].port.ln.Addr().String(), true }}
	if conn, err := d.dial(t.Context(), foreign.nodes[0].ID(), protoHTTP, false); err == nil {
		_ = conn.Close()
		t.Error("a node of another mesh is greeted")
	}
}

// shownBy is what a node shows in every handshake.
func shownBy(t *trust) tls.Certificate {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return *t.cert
}
