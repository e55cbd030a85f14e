package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
	"github.com/flotilla-registry/flotilla/metadata"
)

// stranger makes a trust with a key of its own.
func stranger(t *testing.T, secret []byte, id string, c metadata.Cluster) *trust {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newTrust([][]byte{secret}, id, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.enter(c); err != nil {
		t.Fatal(err)
	}
	return s
}

// secretOf reads the join secret of a running mesh.
func secretOf(t *testing.T, c *cluster) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.dir, "n0", "mesh.secret"))
	if err != nil {
		t.Fatal(err)
	}
	secret, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// TestPeerPortKnowsWhoAsks tries the peer port of a member as everybody who
// may turn up there.
func TestPeerPortKnowsWhoAsks(t *testing.T) {
	c := newCluster(t, 3)
	secret, mine := secretOf(t, c), c.nodes[0].catalog.Cluster()
	member := c.nodes[1].ID()
	other := metadata.Cluster{ID: newUUID(), Epoch: mine.Epoch}
	older := metadata.Cluster{ID: mine.ID, Epoch: mine.Epoch + 1}
	wrong := make([]byte, minSecret)
	for _, row := range []struct {
		name        string
		as          *trust
		hello, raft bool
		members     int // status of a request that is for members; 0: no connection
	}{
		{"a member", c.nodes[1].trust, true, true, http.StatusOK},
		{"a newcomer with the secret", stranger(t, secret, newUUID(), metadata.Cluster{}), true, false, http.StatusForbidden},
		{"a newcomer who claims this mesh", stranger(t, secret, newUUID(), mine), true, false, http.StatusForbidden},
		{"somebody without the secret", stranger(t, wrong, newUUID(), mine), false, false, 0},
		{"a holder of the secret posing as a member", stranger(t, secret, member, mine), false, false, 0},
		{"a holder of the secret posing as a member that has not entered", stranger(t, secret, member, metadata.Cluster{}), false, false, 0},
		{"a holder of the secret posing as this node", stranger(t, secret, c.nodes[0].ID(), mine), false, false, 0},
		{"a node of another mesh with the same secret", stranger(t, secret, newUUID(), other), false, false, 0},
		{"a node of another epoch", stranger(t, secret, newUUID(), older), false, false, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := &dialer{trust: row.as, resolve: func(string) (string, bool) { return c.nodes[0].port.ln.Addr().String(), true }}
			client := d.client(false)
			defer client.CloseIdleConnections()
			get := func(path string) int {
				resp, err := client.Get("https://" + c.nodes[0].ID() + path)
				if err != nil {
					return 0
				}
				defer resp.Body.Close()
				_, _ = io.Copy(io.Discard, resp.Body)
				return resp.StatusCode
			}
			if got := get(helloPath) == http.StatusOK; got != row.hello {
				t.Errorf("hello answered: %v, want %v", got, row.hello)
			}
			if got := get("/blobs/sha256:0"); row.members == http.StatusOK && (got == 0 || got == http.StatusForbidden) || row.members != http.StatusOK && got != row.members {
				t.Errorf("request for members: %d, want %d", got, row.members)
			}
			if got := raftStream(t, d, c.nodes[0].ID()); got != row.raft {
				t.Errorf("raft stream stays open: %v, want %v", got, row.raft)
			}
		})
	}
}

// raftStream reports whether the node takes a raft stream from d. In TLS 1.3 a
// client learns of a refusal with its first read, as an alert; a stream that
// was taken ends without one, since the byte sent is no request of raft's.
func raftStream(t *testing.T, d *dialer, id string) bool {
	t.Helper()
	conn, err := d.dial(t.Context(), id, protoRaft, false)
	if err != nil {
		return false
	}
	defer conn.Close()
	_, _ = conn.Write([]byte{0xff})
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	_, err = conn.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

func TestJoinRefused(t *testing.T) {
	c := newCluster(t, 1)
	secret := filepath.Join(t.TempDir(), "secret")
	write := func(b string) string {
		if err := os.WriteFile(secret, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
		return secret
	}
	wrong := base64.StdEncoding.EncodeToString(make([]byte, 32))
	foreign := newCluster(t, 1)
	for _, row := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"another secret", func(c *Config) { c.SecretFile = write(wrong) }, "secret"},
		{"a short secret", func(c *Config) { c.SecretFile = write("c2hvcnQ=") }, "at least 32"},
		{"a secret that is not base64", func(c *Config) { c.SecretFile = write("not base64!") }, "base64"},
		{"no secret", func(c *Config) { c.SecretFile = filepath.Join(t.TempDir(), "none") }, "does not exist"},
		{"a name that is taken", func(c *Config) { c.Name = "n0" }, "name"},
		{"a data folder of another mesh", func(cfg *Config) {
			foreign.nodes[0].Stop()
			cfg.Data = foreign.cfgs[0].Data
		}, "belongs to mesh"},
		{"a data folder in use", func(cfg *Config) { cfg.Data = c.cfgs[0].Data }, "another flotilla process"},
		{"a port in use", func(cfg *Config) { cfg.Listen = c.nodes[0].Addr() }, "in use"},
		{"a peer port in use", func(cfg *Config) { cfg.PeerListen = c.nodes[0].port.ln.Addr().String() }, "in use"},
		{"a gossip port in use", func(cfg *Config) { cfg.GossipListen = c.nodes[0].GossipAddr() }, "--gossip-listen"},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg := c.config(1)
			cfg.Data = t.TempDir()
			row.change(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err := Run(ctx, cfg)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Fatalf("error %v, want one that says %q", err, row.want)
			}
		})
	}
	if got := len(c.nodes[0].catalog.Members()); got != 1 {
		t.Errorf("%d members after refusals, want 1", got)
	}
}

func TestErrorsOfTheDoor(t *testing.T) {
	if !errors.Is(final{mesh.ErrSecret}, mesh.ErrSecret) || !errors.Is(oci.DecodeError(oci.EncodeError(oci.ErrDenied.Because("x"))), oci.ErrDenied) {
		t.Error("a refusal loses its kind on the way")
	}
}
