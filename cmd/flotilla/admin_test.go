package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/node"
)

// statusServer answers status requests with what next returns, until that is
// false; then it closes its port.
func statusServer(t *testing.T, next func() (node.Status, bool)) string {
	t.Helper()
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		s, more := next()
		if !more {
			_ = srv.Listener.Close()
		}
		w.Header().Set("Connection", "close")
		_ = json.NewEncoder(w).Encode(s)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// TestWatchDrain: the node asked may be the one that leaves, and one that is
// down never does.
func TestWatchDrain(t *testing.T) {
	m := node.MemberStatus{ID: "1", Name: "n1", State: "up", Standing: "draining"}
	for _, row := range []struct {
		name  string
		state string
		stops bool // answering after the first look
		asked bool
		want  string // of the error; "" for none
	}{
		{"it stops answering", "up", true, true, ""},
		{"another one stops answering", "up", true, false, "ask another node"},
		{"it is down", "down", false, false, "is down"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			member := m
			member.State = row.state
			r := remote{server: statusServer(t, func() (node.Status, bool) {
				return node.Status{Node: node.NodeStatus{ID: "x"}, Members: []node.MemberStatus{member}}, !row.stops
			})}
			var out bytes.Buffer
			err := r.watchDrain(t.Context(), &out, member, row.asked)
			if row.want == "" && (err != nil || !strings.Contains(out.String(), "has left")) ||
				row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("error %v, want %q; it says %q", err, row.want, out.String())
			}
		})
	}
}

// TestCommandsKnowTLS: a private certificate is trusted where its authority, or
// none, is asked for, on the command line or in the environment.
func TestCommandsKnowTLS(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(node.Status{Node: node.NodeStatus{ID: "1", Name: "n1"}})
	}))
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		env  string
		args []string
		good bool
	}{
		{"nothing said", "", nil, false},
		{"--ca", "", []string{"--ca", ca}, true},
		{"FLOTILLA_CA", ca, nil, true},
		{"--insecure-tls", "", []string{"--insecure-tls"}, true},
		{"no certificate", "", []string{"--ca", os.DevNull}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Setenv("FLOTILLA_SERVER", srv.URL)
			t.Setenv("FLOTILLA_CA", row.env)
			if err := execute(t.Context(), statusCommand(), row.args...); (err == nil) != row.good {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestStatusShowsTheToken: a mesh that has accounts tells its status only to
// whoever has its secret, and one that has none tells anybody.
func TestStatusShowsTheToken(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(strings.Repeat("QUFB", 11)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name       string
		accounts   bool
		secretFile string
		want       string // of the error; "" for none
	}{
		{"open, with the secret", false, secret, ""},
		{"open, without", false, secret + "2", ""},
		{"accounts, with the secret", true, secret, ""},
		{"accounts, without", true, secret + "2", "log in first: secret file "},
	} {
		t.Run(row.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if row.accounts && r.Header.Get("Authorization") == "" {
					w.WriteHeader(http.StatusUnauthorized)
					_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"log in first"}]}`))
					return
				}
				_ = json.NewEncoder(w).Encode(node.Status{Node: node.NodeStatus{ID: "1"}})
			}))
			defer srv.Close()
			err := execute(t.Context(), statusCommand(), "--server", srv.URL, "--secret-file", row.secretFile)
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("error %v, want %q", err, row.want)
			}
		})
	}
}

// TestKeepUntaggedAsks: what lets manifests go needs --yes.
func TestKeepUntaggedAsks(t *testing.T) {
	var asked atomic.Bool
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			asked.Store(true)
		}
		_ = json.NewEncoder(w).Encode(node.Status{Node: node.NodeStatus{ID: "1"}})
	}))
	defer srv.Close()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(strings.Repeat("QUFB", 11)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		args []string
		done bool
	}{
		{[]string{"--keep-untagged", "720h"}, false},
		{[]string{"--keep-untagged", "720h", "--yes"}, true},
		{[]string{"--keep-untagged", "forever"}, true},
	} {
		asked.Store(false)
		err := execute(t.Context(), gcCommand(), append(row.args, "--server", srv.URL, "--secret-file", secret)...)
		if asked.Load() != row.done || errors.Is(err, errNotSaid) == row.done || row.done && err != nil {
			t.Errorf("%v: done %v, error %v", row.args, asked.Load(), err)
		}
	}
}

// execute runs one command by itself.
func execute(ctx context.Context, c *cobra.Command, args ...string) error {
	c.SetArgs(args)
	c.SetOut(new(bytes.Buffer))
	c.SilenceErrors, c.SilenceUsage = true, true
	return c.ExecuteContext(ctx)
}
