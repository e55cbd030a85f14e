package mesh_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/flotilla-registry/flotilla/mesh"
)

// TestJoinFails holds our words against what the library and the kernel do.
func TestJoinFails(t *testing.T) {
	member := startMember(t, memberConfig(t, 0))
	cfg := memberConfig(t, 1)
	cfg.Timing.Stream = 500 * time.Millisecond
	m := startMember(t, cfg)

	other := memberConfig(t, 2)
	other.Keys = [][]byte{bytes.Repeat([]byte{8}, 32)}
	wrongKey := startMember(t, other)

	mine, theirs := memberConfig(t, 3), memberConfig(t, 4)
	mine.Meta.Cluster, theirs.Meta.Cluster = uuid(103), uuid(104)
	inMine, inTheirs := startMember(t, mine), startMember(t, theirs)

	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()

	for _, row := range []struct {
		name  string
		from  *mesh.Members
		addr  string
		want  error
		words string
	}{
		{"name", m, "no-such-host.invalid:5002", mesh.ErrNoSuchHost, "no-such-host"},
		{"no port", m, "127.0.0.1", mesh.ErrNoSuchHost, "missing port"},
		{"refused", m, closed.Addr().String(), mesh.ErrUnreachable, "nothing listens there"},
		{"wrong key", m, wrongKey.Address(), mesh.ErrSecret, "secret"},
		{"wrong key, asked the other way", wrongKey, member.Address(), mesh.ErrSecret, "secret"},
		{"wrong label", m, labelled(t, "other/1"), mesh.ErrNotGossip, "right port"},
		{"another program", m, speaker(t, "HTTP/1.1 400 Bad Request\r\n\r\n"), mesh.ErrNotGossip, "right port"},
		{"hangs up", m, speaker(t, ""), mesh.ErrNotGossip, "right port"},
		{"silent", m, silent(t), mesh.ErrNotGossip, "right port"},
		{"other mesh", inMine, inTheirs.Address(), mesh.ErrOtherMesh, "another mesh"},
		{"itself", m, m.Address(), mesh.ErrOnlySelf, "own"},
	} {
		t.Run(row.name, func(t *testing.T) {
			n, err := row.from.Join(t.Context(), []string{row.addr})
			if n != 0 || !errors.Is(err, row.want) || !strings.Contains(err.Error(), row.words) {
				t.Fatalf("joined %d, error %v; want %v with %q", n, err, row.want, row.words)
			}
			if !strings.Contains(err.Error(), row.addr) {
				t.Errorf("%q does not name the address %s", err, row.addr)
			}
		})
	}
	if n, err := m.Join(t.Context(), []string{closed.Addr().String(), member.Address()}); n != 1 || err != nil {
		t.Errorf("one good address of two: joined %d, %v", n, err)
	}
	if sees(inMine, 4) || sees(inTheirs, 3) {
		t.Error("two meshes mixed")
	}
}

// TestJoinsItselfElsewhere: the same node under an address it does not know as
// its own.
func TestJoinsItselfElsewhere(t *testing.T) {
	cfg := memberConfig(t, 0)
	cfg.Bind, cfg.Advertise = ":0", "127.0.0.1"
	m := startMember(t, cfg)
	_, port, _ := net.SplitHostPort(m.Address())
	if n, err := m.Join(t.Context(), []string{"[::1]:" + port}); n != 0 || !errors.Is(err, mesh.ErrOnlySelf) {
		t.Fatalf("joined %d, %v", n, err)
	}
}

func TestJoinEndsWithItsContext(t *testing.T) {
	cfg := memberConfig(t, 0)
	cfg.Timing.Stream = time.Minute
	never := silent(t)
	m := startMember(t, cfg) // closed before never: that ends the attempt, a minute early
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.Join(ctx, []string{never}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
}

func labelled(t *testing.T, label string) string {
	conf := memberlist.DefaultLocalConfig()
	conf.Name, conf.BindAddr, conf.BindPort, conf.AdvertisePort = "stranger", "127.0.0.1", 0, 0
	conf.Label, conf.SecretKey, conf.LogOutput = label, testKey, io.Discard
	l, err := memberlist.Create(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Shutdown() })
	return l.LocalNode().Address()
}

func listen(t *testing.T, serve func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	over := make(chan struct{})
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(conn) })
			wg.Go(func() { <-over; _ = conn.Close() })
		}
	})
	t.Cleanup(func() { _ = l.Close(); close(over); wg.Wait() })
	return l.Addr().String()
}

func speaker(t *testing.T, say string) string {
	return listen(t, func(c net.Conn) {
		_, _ = io.WriteString(c, say)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	})
}

func silent(t *testing.T) string {
	return listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c); _ = c.Close() })
}

// TestBlockedUDP: the port that a node advertises passes TCP on, and no UDP.
func TestBlockedUDP(t *testing.T) {
	var said logBuffer
	a := memberConfig(t, 0)
	a.Log = slog.New(slog.NewTextHandler(&said, nil))
	open := startMember(t, a)

	spare := startMember(t, memberConfig(t, 9))
	target := spare.Address()
	closeMember(t, spare)
	b := memberConfig(t, 1)
	b.Bind, b.Advertise = target, listen(t, func(c net.Conn) {
		up, err := net.Dial("tcp", target)
		if err != nil {
			_ = c.Close()
			return
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(up, c); _ = up.(*net.TCPConn).CloseWrite() })
		wg.Go(func() { _, _ = io.Copy(c, up); _ = c.(*net.TCPConn).CloseWrite() })
		wg.Wait()
		_ = up.Close()
		_ = c.Close()
	})
	blocked := startMember(t, b)
	if blocked.Address() != b.Advertise {
		t.Fatalf("advertises %s, not %s", blocked.Address(), b.Advertise)
	}
	join(t, blocked, open)
	eventually(t, open, "the warning", func() bool {
		return strings.Contains(said.String(), "UDP between node0 and node1 seems blocked")
	})
	if !sees(open, 1) {
		t.Error("TCP works, so the node is not down")
	}
}
