package main

import (
	"bufio"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// start puts a balancer before one server per handler and returns its address.
func start(t *testing.T, handlers ...http.HandlerFunc) string {
	t.Helper()
	var backends []string
	for _, h := range handlers {
		s := httptest.NewServer(h)
		t.Cleanup(s.Close)
		backends = append(backends, s.Listener.Addr().String())
	}
	front := httptest.NewServer(newBalancer(backends, nil))
	t.Cleanup(front.Close)
	return front.Listener.Addr().String()
}

// says answers with the backend's name and what reached it.
func says(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s %q %v", name, r.Method, r.Host, r.RequestURI, body, err)
	}
}

func TestEveryRequestGoesToTheNextBackendUnchanged(t *testing.T) {
	addr := start(t, says("a"), says("b"), says("c"))
	for i, want := range []string{
		`a PUT ` + addr + ` /v2/x/blobs/uploads/1?digest=sha256:0&tag=a;b "body" <nil>`,
		`b PUT ` + addr + ` /v2/x/blobs/uploads/1?digest=sha256:0&tag=a;b "body" <nil>`,
		`c PUT ` + addr + ` /v2/x/blobs/uploads/1?digest=sha256:0&tag=a;b "body" <nil>`,
		`a PUT ` + addr + ` /v2/x/blobs/uploads/1?digest=sha256:0&tag=a;b "body" <nil>`,
	} {
		req, err := http.NewRequest("PUT", "http://"+addr+"/v2/x/blobs/uploads/1?digest=sha256:0&tag=a;b", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		if err = res.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("request %d: got %s, want %s", i, got, want)
		}
	}
}

// A request's body must pass piece by piece: the backend has read the first piece before the client sends the second.
func TestRequestBodyStreams(t *testing.T) {
	pieces := make(chan string)
	addr := start(t, func(_ http.ResponseWriter, r *http.Request) {
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			pieces <- lines.Text()
		}
	})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
	for _, piece := range []string{"one", "two"} {
		fmt.Fprintf(c, "4\r\n%s\n\r\n", piece)
		select {
		case got := <-pieces:
			if got != piece {
				t.Fatalf("the backend read %q, want %q", got, piece)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("the backend has not read %q", piece)
		}
	}
	fmt.Fprintf(c, "0\r\n\r\n")
	expectLine(t, bufio.NewReader(c), "HTTP/1.1 200 OK\r\n")
}

// An answer's body likewise: the backend writes the second piece only when the client has read the first.
func TestAnswerBodyStreams(t *testing.T) {
	read := make(chan struct{})
	addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "one")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		select {
		case <-read:
			fmt.Fprintln(w, "two")
		case <-r.Context().Done():
		}
	})
	client := &http.Client{Timeout: 10 * time.Second}
	res, err := client.Get("http://" + addr + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer := bufio.NewReader(res.Body)
	expectLine(t, answer, "one\n")
	close(read)
	expectLine(t, answer, "two\n")
}

// A backend that refuses by its header alone must be heard before the client sends the body, and one that wants
// the body must be able to ask for it.
func TestExpectContinueIsTheBackendsToAnswer(t *testing.T) {
	addr := start(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/want" {
			body, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%q %v", body, err)
			return
		}
		http.Error(w, "held already", http.StatusConflict)
	})
	for _, tc := range []struct{ path, first, last string }{
		{"/want", "HTTP/1.1 100 Continue\r\n", `"four" <nil>`},
		{"/have", "HTTP/1.1 409 Conflict\r\n", ""},
	} {
		t.Run(tc.path, func(t *testing.T) {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err = c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\nConnection: close\r\nExpect: 100-continue\r\n\r\n", tc.path, addr)
			answer := bufio.NewReader(c)
			expectLine(t, answer, tc.first)
			if tc.last == "" {
				return
			}
			fmt.Fprint(c, "four")
			rest, err := io.ReadAll(answer)
			if err != nil || !strings.HasSuffix(string(rest), tc.last) {
				t.Errorf("got %q, %v, want it to end in %s", rest, err, tc.last)
			}
		})
	}
}

// With TLS on both sides, HTTP/2 too: all requests of one connection go to the next backend each, and a backend that
// the authority does not know is not spoken to.
func TestTLS(t *testing.T) {
	own := httptest.NewTLSServer(says("own"))
	defer own.Close()
	other := httptest.NewTLSServer(says("other"))
	defer other.Close()
	known := x509.NewCertPool()
	known.AddCert(own.Certificate())
	backends := []string{own.Listener.Addr().String(), other.Listener.Addr().String()}
	for _, tc := range []struct {
		name  string
		trust *x509.CertPool
		want  []string // how the answers begin
	}{
		{"known authority", known, []string{"own GET", "other GET", "own GET"}},
		{"unknown authority", x509.NewCertPool(), []string{"502", "502", "502"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBalancer(backends, tc.trust)
			b.proxy.ErrorLog = log.New(io.Discard, "", 0)
			front := httptest.NewUnstartedServer(b)
			front.EnableHTTP2 = true
			front.StartTLS()
			defer front.Close()
			for i, want := range tc.want {
				res, err := front.Client().Get(front.URL)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(res.Body)
				if err != nil {
					t.Fatal(err)
				}
				if err = res.Body.Close(); err != nil {
					t.Fatal(err)
				}
				got := string(body)
				if res.StatusCode != http.StatusOK {
					got = res.Status
				}
				if res.ProtoMajor != 2 || !strings.HasPrefix(got, want) {
					t.Errorf("request %d: got %s %s, want HTTP/2 and %s", i, res.Proto, got, want)
				}
			}
		})
	}
}

func TestShares(t *testing.T) {
	b := newBalancer([]string{"a", "b", "c"}, nil)
	b.requests.Store(7)
	if got, want := b.shares(), "3 2 2"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func expectLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	got, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("got %q, want %q", got, want)
	}
}
