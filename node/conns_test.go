package node

import (
	"bufio"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/metadata"
)

// ends fails unless conn ends by itself, without a byte more.
func ends(t *testing.T, what string, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: read %d bytes, %v, want its end", what, n, err)
	}
}

// ask sends a GET of path over conn, which stays open, and returns the status.
func ask(t *testing.T, conn net.Conn, path string) int {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, "https://peer"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	if resp.Close {
		t.Fatalf("GET %s: %d ends the connection", path, resp.StatusCode)
	}
	return resp.StatusCode
}

// TestConnectionsEndWithMembership: a node that was let go of loses what it has
// open with a member, whoever opened it, however its membership was known; a
// member's connections stay.
func TestConnectionsEndWithMembership(t *testing.T) {
	mine := metadata.Cluster{ID: newUUID(), Epoch: 1}
	secret := make([]byte, minSecret)
	for _, row := range []struct {
		name string
		know func(here *trust, members ...metadata.Member)
	}{
		{"a member by the catalogue", func(here *trust, members ...metadata.Member) { here.pin(members) }},
		{"a member by what another one told", func(here *trust, members ...metadata.Member) { here.lend(members) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			here, stays, goes := stranger(t, secret, newUUID(), mine), stranger(t, secret, newUUID(), mine), stranger(t, secret, newUUID(), mine)
			member := func(of *trust) metadata.Member { return metadata.Member{ID: of.id, Key: of.public()} }
			all := []metadata.Member{member(here), member(stays), member(goes)}
			row.know(here, all...)
			stays.pin(all)
			goes.pin(all)
			addr := map[string]string{here.id: servePeer(t, here), stays.id: servePeer(t, stays), goes.id: servePeer(t, goes)}
			open := func(from, to *trust) net.Conn {
				d := &dialer{trust: from, resolve: func(id string) (string, bool) { return addr[id], true }}
				conn, err := d.dial(t.Context(), to.id, protoHTTP, true)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = conn.Close() })
				if got := ask(t, conn, "/members"); got != http.StatusOK {
					t.Fatalf("a member's request: %d", got)
				}
				return conn
			}
			fromGone, toGone := open(goes, here), open(here, goes)
			fromMember, toMember := open(stays, here), open(here, stays)

			row.know(here, all[:2]...)
			ends(t, "a connection from the node that is gone", fromGone)
			ends(t, "a connection to the node that is gone", toGone)
			for what, conn := range map[string]net.Conn{"from": fromMember, "to": toMember} {
				if got := ask(t, conn, "/members"); got != http.StatusOK {
					t.Errorf("a request over the connection %s a member: %d", what, got)
				}
			}
			d := &dialer{trust: goes, resolve: func(id string) (string, bool) { return addr[id], true }}
			again, err := d.dial(t.Context(), here.id, protoHTTP, true)
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if got := ask(t, again, "/members"); got != http.StatusForbidden {
				t.Errorf("a request over a new connection: %d, want 403", got)
			}
			if got := ask(t, again, helloPath); got != http.StatusOK {
				t.Errorf("the door, where it learns why: %d", got)
			}
		})
	}
}

func openConnections(t *trust) int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.open)
}

// servePeer serves the peer port of a node that is no more than its trust, and
// sees that in the end it remembers no connection.
func servePeer(t *testing.T, of *trust) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fine := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	log := slog.New(slog.DiscardHandler)
	port := newPeerPort(ln, of, log)
	srv := publicServer(peerHandler(of, fine, fine, log), log)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(port.http)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		port.Close()
		<-done
		for deadline := time.After(patience); openConnections(of) > 0; {
			select {
			case <-deadline:
				t.Error("connections are remembered after their end")
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	return ln.Addr().String()
}
