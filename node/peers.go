package node

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
)

const (
	handshakeTime = 10 * time.Second
	// maxHandshakes bounds what strangers can make the peer port do at once,
	// and maxFromOne what one address can: its silence shuts nobody else out.
	maxHandshakes = 256
	maxFromOne    = 32
	requestHeader = "X-Request-Id"
)

// peerPort is the one listener for everything between nodes. It proves each
// connection, then hands it on by the protocol that was negotiated: raft
// streams to the catalogue, HTTP to the peer server.
type peerPort struct {
	ln    net.Listener
	trust *trust
	log   *slog.Logger
	raft  *handoff
	http  *handoff
	done  sync.WaitGroup

	mu       sync.Mutex     // guards the fields below
	greeting map[string]int // handshakes under way, by address
	told     time.Time      // when a refusal was last told as a warning
}

func newPeerPort(ln net.Listener, t *trust, log *slog.Logger) *peerPort {
	p := &peerPort{ln: ln, trust: t, log: log, raft: newHandoff(ln.Addr()), http: newHandoff(ln.Addr()), greeting: map[string]int{}}
	p.done.Go(p.accept)
	return p
}

// Close stops accepting and waits for handshakes under way.
func (p *peerPort) Close() {
	_ = p.ln.Close()
	_ = p.raft.Close()
	_ = p.http.Close()
	p.done.Wait()
}

func (p *peerPort) accept() {
	slots := make(chan struct{}, maxHandshakes)
	for {
		conn, err := p.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, most likely: it passes
			p.log.Warn("peer port cannot accept", "error", err)
			time.Sleep(50 * time.Millisecond)
			continue
		}
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		if !p.count(host, 1) {
			_ = conn.Close()
			continue
		}
		slots <- struct{}{}
		p.done.Go(func() {
			defer func() {
				p.count(host, -1)
				<-slots
			}()
			p.greet(conn)
		})
	}
}

// count adds a handshake with host, or takes it back, and reports whether that
// is within bounds.
func (p *peerPort) count(host string, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n > 0 && p.greeting[host] >= maxFromOne {
		return false
	}
	if p.greeting[host] += n; p.greeting[host] == 0 {
		delete(p.greeting, host)
	}
	return true
}

// refused tells of a refusal: once a second at most as a warning, since
// strangers can cause any number.
func (p *peerPort) refused(from net.Addr, reason error) {
	p.mu.Lock()
	level := slog.LevelDebug
	if now := time.Now(); now.Sub(p.told) > time.Second {
		p.told, level = now, slog.LevelWarn
	}
	p.mu.Unlock()
	p.log.Log(context.Background(), level, "peer refused", "from", from.String(), "reason", reason.Error())
}

// greet does the handshake. Strangers who know the secret get as far as HTTP,
// where they may only ask to join; a raft stream is for members.
func (p *peerPort) greet(conn net.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTime)
	defer cancel()
	var peer identity
	kept := &peerConn{Conn: conn, trust: p.trust, served: true}
	tc := tls.Server(kept, p.trust.config([]string{protoRaft, protoHTTP}, func(who identity, proto string) error {
		if proto == protoRaft && !who.Member {
			return errNotMember
		}
		peer = who
		return nil
	}))
	err := tc.HandshakeContext(ctx)
	raft := tc.ConnectionState().NegotiatedProtocol == protoRaft
	if err == nil && !raft {
		err = p.trust.keep(kept, peer)
	}
	switch {
	case err != nil:
		p.refused(conn.RemoteAddr(), err)
		_ = kept.Close()
	case raft:
		p.raft.give(tc)
	default:
		p.http.give(tc)
	}
}

// handoff is a net.Listener over connections that somebody else accepted.
type handoff struct {
	addr  net.Addr
	conns chan net.Conn
	stop  chan struct{}
	once  sync.Once
}

func newHandoff(addr net.Addr) *handoff {
	return &handoff{addr: addr, conns: make(chan net.Conn), stop: make(chan struct{})}
}

func (h *handoff) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.stop:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.stop:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.stop) })
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return h.addr }

// dialer opens proven connections to members by UUID.
type dialer struct {
	trust   *trust
	resolve func(id string) (addr string, ok bool) // today's address of a node's peer port
}

// dial proves that the node with this UUID answers; strict asks that it is a
// member too, which only a node that is asking to join cannot demand.
func (d *dialer) dial(ctx context.Context, id, proto string, strict bool) (net.Conn, error) {
	addr, ok := d.resolve(id)
	if !ok {
		return nil, fmt.Errorf("dial node %s: no address known", id)
	}
	return d.dialAddr(ctx, addr, proto, func(who identity, _ string) error {
		if who.ID != id {
			return errOtherNode
		}
		if strict && !who.Member {
			return errNotMember
		}
		return nil
	})
}

func (d *dialer) dialAddr(ctx context.Context, addr, proto string, check func(identity, string) error) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial peer: %w", err)
	}
	var peer identity
	kept := &peerConn{Conn: conn, trust: d.trust}
	tc := tls.Client(kept, d.trust.config([]string{proto}, func(who identity, proto string) error {
		peer = who
		return check(who, proto)
	}))
	ctx, cancel := context.WithTimeout(ctx, handshakeTime)
	defer cancel()
	err = tc.HandshakeContext(ctx)
	if err == nil && proto == protoHTTP {
		err = d.trust.keep(kept, peer)
	}
	if err != nil {
		_ = kept.Close()
		return nil, fmt.Errorf("greet peer at %s: %w", addr, err)
	}
	return tc, nil
}

// client returns an HTTP client for URLs of the form https://<UUID>/path. It
// speaks HTTP/1.1: one connection per transfer is faster for bulk bytes than
// streams that share one.
func (d *dialer) client(strict bool) *http.Client {
	return &http.Client{
		Transport: tagged{&http.Transport{
			DialTLSContext: func(ctx context.Context, _, hostport string) (net.Conn, error) {
				id, _, err := net.SplitHostPort(hostport)
				if err != nil {
					return nil, err
				}
				return d.dial(ctx, id, protoHTTP, strict)
			},
			MaxIdleConnsPerHost:   256, // a handshake costs more than a connection that waits
			IdleConnTimeout:       90 * time.Second,
			ExpectContinueTimeout: 5 * time.Second,
			WriteBufferSize:       64 << 10,
			ReadBufferSize:        64 << 10,
			DisableCompression:    true,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// tagged sends the request id of the context along, so that one client request
// has one name in the logs of all nodes.
type tagged struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (t tagged) RoundTrip(r *http.Request) (*http.Response, error) {
	if id := oci.RequestID(r.Context()); id != "" {
		r = r.Clone(r.Context())
		r.Header.Set(requestHeader, id)
	}
	return t.Transport.RoundTrip(r)
}

// peerHandler serves what nodes ask of each other: members everything,
// strangers who know the secret the door alone.
func peerHandler(t *trust, members, door http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, err := t.peerOf(*r.TLS) // again for each request: a member removed since the handshake is refused
		if err != nil {
			refuse(w, oci.ErrDenied.Because("%v", err))
			return
		}
		id := r.Header.Get(requestHeader)
		ctx := context.WithValue(oci.WithRequestID(r.Context(), id), identityKey{}, who)
		defer func(start time.Time) {
			log.Log(ctx, peerLevel(r.URL.Path), "peer request", "request", id, "from", who.ID, "method", r.Method, "path", r.URL.Path, "took", time.Since(start))
		}(time.Now())
		switch {
		case isDoor(r.URL.Path):
			door.ServeHTTP(w, r.WithContext(ctx))
		case who.Member:
			members.ServeHTTP(w, r.WithContext(mesh.WithCaller(ctx, who.ID)))
		default:
			refuse(w, oci.ErrDenied.Because("%v", errNotMember))
		}
	})
}

// peerLevel keeps the questions that every read by tag and every write brings
// with it, and the steps and wishes of every download, out of a log that people read.
func peerLevel(path string) slog.Level {
	if strings.HasPrefix(path, "/blobs/") && strings.HasSuffix(path, "/line") {
		return slog.LevelDebug
	}
	switch path {
	case "/blobs/leave", "/metadata/readindex", "/metadata/term", "/metadata/applied":
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

type identityKey struct{}

// callerOf returns the node that sent a peer request.
func callerOf(ctx context.Context) identity {
	who, _ := ctx.Value(identityKey{}).(identity)
	return who
}

// refuse answers a peer with an error of the vocabulary.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusServiceUnavailable
	if errors.Is(err, oci.ErrDenied) {
		status = http.StatusForbidden
	}
	w.WriteHeader(status)
	_, _ = w.Write(oci.EncodeError(err))
}

// newRequestID names an operation that this node began by itself.
func newRequestID() string { return rand.Text() }
