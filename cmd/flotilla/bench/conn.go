package bench

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	readBuffer = 128 << 10 // holds the whole answer of a small range
	bodyBuffer = 512 << 10 // larger reads go from the socket to here directly
	// A body up to joinBody leaves in one write with its head.
	joinBody    = 32 << 10
	writeBuffer = joinBody + 8<<10

	dialTimeout = 10 * time.Second
	// grace is what a request has to end in when its context has: so cleaning up
	// knows of the upload that it began, and does not overtake it.
	grace = 2 * time.Second

	maxRedirects = 5
	maxErrorText = 512
)

// A session is one worker's client: it keeps one connection to each host that it
// speaks to and is used by one goroutine at a time.
type session struct {
	base  *url.URL
	tls   *tls.Config
	links map[string]*link // by scheme and host
	buf   []byte
}

type link struct {
	net.Conn
	r *bufio.Reader
	w *bufio.Writer
}

type request struct {
	method string
	url    *url.URL
	want   int
	header []string // whole lines, "Name: value"
	body   []byte
	sink   io.Writer // gets the answer's body; nil: only counted
}

type answer struct {
	status int
	header http.Header
	url    *url.URL // what was asked last
	size   int64    // of the body, as received
	text   string   // the beginning of the body, if the status was not wanted
}

// statusError says that a registry answered, but not what it should.
type statusError struct {
	method, path string
	status       int
	text         string
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s %s: %d %s", e.method, e.path, e.status, http.StatusText(e.status))
	if e.text != "" {
		s += ": " + e.text
	}
	return s
}

func newSession(base *url.URL, conf *tls.Config) *session {
	return &session{base: base, tls: conf, links: map[string]*link{}, buf: make([]byte, bodyBuffer)}
}

// do sends a request and reads the whole answer; any status but the wanted one is
// an error. GET and HEAD follow redirects, as to the storage behind a registry.
func (s *session) do(ctx context.Context, rq request) (answer, error) {
	for hops := 0; ; hops++ {
		if ctx.Err() != nil {
			return answer{}, context.Cause(ctx)
		}
		a, err := s.exchange(ctx, rq)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return a, fmt.Errorf("%s %s: %w", rq.method, rq.url.Path, err)
		}
		if a.status == rq.want {
			return a, nil
		}
		moved := a.status == 301 || a.status == 302 || a.status == 307 || a.status == 308
		if moved && hops < maxRedirects && (rq.method == http.MethodGet || rq.method == http.MethodHead) {
			if rq.url, err = a.location(); err != nil {
				return a, err
			}
			continue
		}
		return a, &statusError{rq.method, rq.url.Path, a.status, a.text}
	}
}

func (a answer) location() (*url.URL, error) {
	l := a.header.Get("Location")
	u, err := a.url.Parse(l)
	if l == "" || err != nil || u.Host == "" {
		return nil, fmt.Errorf("%s: answered with Location %q", a.url.Path, l)
	}
	return u, nil
}

// exchange is one request and its answer. The connection stays for the next one
// unless something went wrong or the server will close it.
func (s *session) exchange(ctx context.Context, rq request) (answer, error) {
	l, err := s.link(ctx, rq.url)
	if err != nil {
		return answer{}, err
	}
	stop := context.AfterFunc(ctx, func() { l.SetDeadline(time.Now().Add(grace)) })
	a, keep, err := s.talk(l, rq)
	if !stop() || err != nil || !keep {
		s.drop(rq.url)
	}
	return a, err
}

func (s *session) talk(l *link, rq request) (a answer, keep bool, err error) {
	writeErr := s.send(l, rq)
	// A server may refuse a body before it has read it: its answer says why.
	resp, err := readResponse(l.r, rq.method)
	if err != nil {
		if writeErr != nil {
			err = writeErr
		}
		if errors.Is(err, io.EOF) {
			err = errors.New("the server closed the connection")
		}
		return a, false, err
	}
	a = answer{status: resp.StatusCode, header: resp.Header, url: rq.url}
	if a.status != rq.want {
		text, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorText))
		a.text = strings.Join(strings.Fields(string(text)), " ")
		whole := err == nil && len(text) < maxErrorText
		return a, whole && writeErr == nil && !resp.Close, nil
	}
	a.size, err = s.receive(rq.sink, resp.Body)
	return a, writeErr == nil && !resp.Close, err
}

func readResponse(r *bufio.Reader, method string) (*http.Response, error) {
	for {
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil || resp.StatusCode >= 200 {
			return resp, err
		}
	}
}

// receive is io.CopyBuffer without a writer's ReadFrom, which would bring its
// own, smaller buffer.
func (s *session) receive(sink io.Writer, body io.Reader) (size int64, err error) {
	for {
		n, err := body.Read(s.buf)
		size += int64(n)
		if n > 0 && sink != nil {
			if _, err := sink.Write(s.buf[:n]); err != nil {
				return size, err
			}
		}
		if err == io.EOF {
			return size, nil
		}
		if err != nil {
			return size, err
		}
	}
}

func (s *session) send(l *link, rq request) error {
	w := l.w // errors stay with it until Flush
	w.WriteString(rq.method)
	w.WriteByte(' ')
	w.WriteString(rq.url.RequestURI())
	w.WriteString(" HTTP/1.1\r\nHost: ")
	w.WriteString(rq.url.Host)
	w.WriteString("\r\nUser-Agent: flotilla-bench\r\n")
	if user := s.base.User; user != nil && rq.url.Host == s.base.Host {
		password, _ := user.Password()
		w.WriteString("Authorization: Basic ")
		w.WriteString(base64.StdEncoding.EncodeToString([]byte(user.Username() + ":" + password)))
		w.WriteString("\r\n")
	}
	for _, line := range rq.header {
		w.WriteString(line)
		w.WriteString("\r\n")
	}
	if rq.method != http.MethodGet && rq.method != http.MethodHead {
		w.WriteString("Content-Length: ")
		w.WriteString(strconv.Itoa(len(rq.body)))
		w.WriteString("\r\n")
	}
	w.WriteString("\r\n")
	if len(rq.body) <= joinBody {
		w.Write(rq.body)
		return w.Flush()
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := l.Write(rq.body)
	return err
}

func linkKey(u *url.URL) string { return u.Scheme + "://" + u.Host }

func (s *session) link(ctx context.Context, u *url.URL) (*link, error) {
	if l := s.links[linkKey(u)]; l != nil {
		return l, nil
	}
	port := u.Port()
	if port == "" {
		port = u.Scheme
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return nil, err
	}
	if u.Scheme == "https" {
		if conn, err = s.encrypt(ctx, conn, u.Hostname()); err != nil {
			return nil, err
		}
	}
	l := &link{conn, bufio.NewReaderSize(conn, readBuffer), bufio.NewWriterSize(conn, writeBuffer)}
	s.links[linkKey(u)] = l
	return l, nil
}

func (s *session) encrypt(ctx context.Context, conn net.Conn, host string) (net.Conn, error) {
	conf := s.tls.Clone()
	conf.ServerName = host
	secure := tls.Client(conn, conf)
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

func (s *session) drop(u *url.URL) {
	if l := s.links[linkKey(u)]; l != nil {
		l.Close()
		delete(s.links, linkKey(u))
	}
}

// close ends all connections; the next request opens new ones.
func (s *session) close() {
	for key, l := range s.links {
		l.Close()
		delete(s.links, key)
	}
}
