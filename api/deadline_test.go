package api_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/auth"
	"github.com/flotilla-registry/flotilla/metadata"
	"github.com/flotilla-registry/flotilla/node/disk"
)

// pipes is a listener whose connections are net.Pipes, so that their deadlines
// keep the time of a synctest bubble.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// withPipes runs test in a bubble against a server whose clients may idle for a
// minute; dial opens a connection to it. The catalogue is one that nobody asks.
func withPipes(t *testing.T, test func(t *testing.T, dial func() net.Conn)) {
	store, err := disk.Open(disk.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	synctest.Test(t, func(t *testing.T) {
		open, err := auth.New(auth.Config{Settings: noSettings{}, Mesh: func() string { return "" }, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		h, err := api.New(api.Config{
			Node: "n1", Blobs: store, Uploads: store, Catalog: new(metadata.Catalog), Health: health{}, Room: func() error { return nil },
			Admin: noAdmin(), Auth: open,
			Status: func(context.Context, bool) any { return strings.Repeat("x", 8<<20) }, Where: new(node).where, Metrics: http.HandlerFunc(slow),
			Observe: func(api.Served) {}, Log: slog.New(slog.DiscardHandler), Idle: time.Minute,
		})
		if err != nil {
			t.Fatal(err)
		}
		ln := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		server := &http.Server{Handler: h, Protocols: new(http.Protocols)}
		server.Protocols.SetHTTP1(true)
		server.Protocols.SetUnencryptedHTTP2(true)
		served := make(chan error, 1)
		go func() { served <- server.Serve(ln) }()
		var clients []net.Conn
		test(t, func() net.Conn {
			client, conn := net.Pipe()
			ln.conns <- conn
			clients = append(clients, client)
			return client
		})
		for _, c := range clients {
			c.Close()
		}
		server.Close()
		if err := <-served; err != http.ErrServerClosed {
			t.Error(err)
		}
	})
}

// slow is a handler that takes its time between all that it does.
func slow(w http.ResponseWriter, r *http.Request) {
	got := make([]byte, 2)
	_, err := io.ReadFull(r.Body, got[:1])
	if err == nil {
		time.Sleep(10 * time.Minute)
		_, err = io.ReadFull(r.Body, got[1:])
	}
	for i := range 3 {
		time.Sleep(10 * time.Minute)
		fmt.Fprintln(w, i, string(got), err, r.Context().Err())
		http.NewResponseController(w).Flush()
	}
}

// TestSlowHandler: deadlines are for clients. A handler that waits for others
// keeps its connection and its context, whatever it has read and written.
func TestSlowHandler(t *testing.T) {
	for name, set := range map[string]func(*http.Protocols, bool){
		"HTTP/1": (*http.Protocols).SetHTTP1, "HTTP/2": (*http.Protocols).SetUnencryptedHTTP2,
	} {
		t.Run(name, func(t *testing.T) {
			withPipes(t, func(t *testing.T, dial func() net.Conn) {
				transport := &http.Transport{Protocols: new(http.Protocols)}
				transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return dial(), nil }
				set(transport.Protocols, true)
				defer transport.CloseIdleConnections()
				body, in := io.Pipe()
				go func() {
					io.WriteString(in, "h")
					time.Sleep(10*time.Minute + 30*time.Second)
					io.WriteString(in, "i")
					in.Close()
				}()
				req, err := http.NewRequest("GET", "http://x/metrics", body)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := transport.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				const want = "0 hi <nil> <nil>\n1 hi <nil> <nil>\n2 hi <nil> <nil>\n"
				if got, err := io.ReadAll(resp.Body); string(got) != want || err != nil {
					t.Errorf("got %q, %v", got, err)
				}
			})
		})
	}
}

// send writes s in the background: a pipe has no buffer.
func send(conn net.Conn, s string) { go io.WriteString(conn, s) }

func startOverPipe(t *testing.T, conn net.Conn, r *bufio.Reader) string {
	t.Helper()
	send(conn, "POST /v2/r/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 202 {
		t.Fatalf("start: %v, %v", resp, err)
	}
	return resp.Header.Get("Location")
}

// TestStalledClient: a client that stops in the middle of a body is told and
// dropped after a minute, and what it sent is kept.
func TestStalledClient(t *testing.T) {
	withPipes(t, func(t *testing.T, dial func() net.Conn) {
		conn := dial()
		r := bufio.NewReader(conn)
		at := startOverPipe(t, conn, r)
		send(conn, "PATCH "+at+" HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n01234")
		start := time.Now()
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if took := time.Since(start); resp.StatusCode != 400 || took != time.Minute || err != nil {
			t.Errorf("got %s after %s, %v", resp.Status, took, err)
		}
		if !strings.Contains(string(body), "BLOB_UPLOAD_INVALID") || !resp.Close {
			t.Errorf("got %s, close %v", body, resp.Close)
		}

		conn = dial()
		send(conn, "GET "+at+" HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err = http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.Header.Get("Range") != "0-4" {
			t.Errorf("kept %v, %v; want 0-4", resp, err)
		}
	})
}

// TestSlowClient: a byte now and then is enough, for as long as it takes, and on
// a connection that was idle before.
func TestSlowClient(t *testing.T) {
	withPipes(t, func(t *testing.T, dial func() net.Conn) {
		conn := dial()
		r := bufio.NewReader(conn)
		at := startOverPipe(t, conn, r)
		time.Sleep(10 * time.Minute)
		const content = "one byte every fifty seconds"
		go func() {
			fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", at, len(content))
			for i := range len(content) {
				time.Sleep(50 * time.Second)
				io.WriteString(conn, content[i:i+1])
			}
		}()
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != http.StatusContinue {
			t.Fatalf("got %v, %v; want 100", resp, err)
		}
		resp, err = http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != 202 || resp.Header.Get("Range") != fmt.Sprintf("0-%d", len(content)-1) {
			t.Fatalf("got %v, %v", resp, err)
		}
	})
}

// TestReaderThatStops: a client that takes nothing for a minute is dropped; one
// that takes a little at a time gets all of it.
func TestReaderThatStops(t *testing.T) {
	const request = "GET /flotilla/v1/status HTTP/1.1\r\nHost: x\r\n\r\n" // 8 MiB
	withPipes(t, func(t *testing.T, dial func() net.Conn) {
		conn := dial()
		send(conn, request)
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if n, err := io.Copy(io.Discard, resp.Body); err == nil || n >= resp.ContentLength {
			t.Errorf("got %d of %d bytes after a pause, %v", n, resp.ContentLength, err)
		}
	})
	withPipes(t, func(t *testing.T, dial func() net.Conn) {
		conn := dial()
		send(conn, request)
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		var n int64
		for err == nil {
			var m int64
			m, err = io.CopyN(io.Discard, resp.Body, 128<<10)
			n += m
			time.Sleep(25 * time.Second)
		}
		if err != io.EOF || n != resp.ContentLength {
			t.Errorf("got %d of %d bytes, %v", n, resp.ContentLength, err)
		}
	})
}

// TestSlowForm: what is kept in memory comes whole in a minute for each 128 KiB,
// also of somebody who sends a byte now and then.
func TestSlowForm(t *testing.T) {
	for name, request := range map[string]string{
		"a form for a token": "POST /token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 60000\r\n\r\n",
		"a manifest":         "PUT /v2/r/manifests/latest HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			withPipes(t, func(t *testing.T, dial func() net.Conn) {
				conn := dial()
				start, stop := time.Now(), make(chan struct{})
				go func() {
					_, err := io.WriteString(conn, request)
					for err == nil {
						select {
						case <-stop:
							return
						case <-time.After(50 * time.Second):
							_, err = io.WriteString(conn, "a")
						}
					}
				}()
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				close(stop)
				if took := time.Since(start); err != nil || resp.StatusCode != 400 || took > 40*time.Minute {
					t.Errorf("got %v, %v after %s", resp, err, took)
				}
				conn.Close()
			})
		})
	}
}
