package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/flotilla-registry/flotilla/api"
	"github.com/flotilla-registry/flotilla/api/auth"
)

func (n *Node) openAuth() (*auth.Authority, error) {
	a, err := auth.New(auth.Config{
		Settings:     api.Settings(n.catalog),
		Mesh:         func() string { return n.catalog.Cluster().ID },
		Htpasswd:     n.cfg.Htpasswd,
		Certificates: n.cfg.TLSClientCA != "",
		PublicURL:    n.cfg.PublicURL,
		Log:          n.log,
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return a, nil
}

// openAudit opens the stream of the audit log, nil where there is none.
func (n *Node) openAudit() (*slog.Logger, error) {
	var to io.Writer
	switch n.cfg.AuditLog {
	case "":
		return nil, nil
	case "-":
		to = os.Stdout
	default:
		// Not blocking, since a pipe that nobody reads would hold up the start.
		f, err := os.OpenFile(n.cfg.AuditLog, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, fmt.Errorf("%w: --audit-log: %w", ErrConfig, err)
		}
		n.auditFile, to = f, f
	}
	return slog.New(slog.NewJSONHandler(&auditWriter{to: to, log: n.log}, nil)), nil
}

// How long a line waits for the reader of a pipe, and the next while none reads.
const (
	auditPatience = time.Second
	auditRetry    = time.Millisecond
)

// auditWriter writes the lines of the audit log, one at a time. Where that fails,
// as on a full disk or a pipe that is full, requests go on, and the node's own
// log says so.
type auditWriter struct {
	to     io.Writer
	log    *slog.Logger
	failed bool // the last line did not go out
	torn   bool // a part of it did
}

// Write implements io.Writer.
func (w *auditWriter) Write(line []byte) (int, error) {
	if w.torn { // what comes must be a line of its own
		line = append([]byte{'\n'}, line...)
	}
	if to, ok := w.to.(interface{ SetWriteDeadline(time.Time) error }); ok {
		patience := auditPatience
		if w.failed {
			patience = auditRetry
		}
		_ = to.SetWriteDeadline(time.Now().Add(patience)) // files have none, and need none
	}
	n, err := w.to.Write(line)
	w.torn = n < len(line) && (n > 0 || w.torn)
	switch {
	case err != nil && !w.failed:
		w.log.Error("the audit log cannot be written; its lines are lost until it can", "error", err)
	case err == nil && w.failed:
		w.log.Warn("the audit log is written again")
	}
	w.failed = err != nil
	return n, err
}

// Authorities reads a PEM file of those who may sign certificates.
func Authorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return pool, nil
}

// publicTLS is the TLS configuration of the public port. A client may show a
// certificate where an authority for these is named, and need not.
func (n *Node) publicTLS() *tls.Config {
	c := n.pair.config()
	if n.clientCAs != nil {
		c.ClientCAs, c.ClientAuth = n.clientCAs, tls.VerifyClientCertIfGiven
	}
	return c
}

// sayWhoMay logs what anybody who reaches the public port may do, where that
// is more than an operator may expect. What there is in accounts it has to hear
// of the mesh first.
func (n *Node) sayWhoMay(ctx context.Context) {
	for n.auth.Prove(ctx, true) != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryJoin):
		}
	}
	if n.auth.Open() && exposed(n.publicLn.Addr()) {
		n.log.Warn("the public port is reachable from other machines and there are no accounts: anyone who reaches it may pull, push and delete; flotilla user add makes an account",
			"listen", n.publicLn.Addr().String())
	}
	if !n.auth.Open() && n.pair == nil && exposed(n.publicLn.Addr()) {
		n.log.Warn("the public port takes passwords over plain HTTP: give it --tls-cert and --tls-key, or let only a proxy that speaks TLS reach it",
			"listen", n.publicLn.Addr().String())
	}
}
