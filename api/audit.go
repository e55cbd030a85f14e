package api

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/gorilla/mux"

	"github.com/flotilla-registry/flotilla/api/auth"
)

// audit writes the line that says who did what: of each request that changes
// something or is refused for who sent it, and of pulls and lists where
// AuditPulls is set. It names no header, no query and no body, since these may
// hold secrets.
func (s *server) audit(r *http.Request, id string, needs auth.Action, served Served) {
	if s.Audit == nil || needs == nothing {
		return
	}
	reads := needs == auth.Pull || needs == auth.List || needs == account
	refused := served.Status == http.StatusUnauthorized || served.Status == http.StatusForbidden ||
		served.Status == http.StatusTooManyRequests
	if reads && !refused && !s.AuditPulls {
		return
	}
	who := principal(r)
	attrs := []slog.Attr{
		slog.String("account", who.Name), slog.String("kind", string(who.Kind)), slog.String("remote", r.RemoteAddr),
		slog.String("action", string(needs)), slog.String("method", r.Method), slog.String("route", served.Route),
	}
	vars := mux.Vars(r)
	for _, of := range []string{"name", "reference", "digest", "id", "member", "account"} {
		if v := vars[of]; v != "" {
			attrs = append(attrs, slog.String(of, shorten(v)))
		}
	}
	attrs = append(attrs, slog.Int("status", served.Status), slog.String("request", id))
	s.Audit.LogAttrs(context.WithoutCancel(r.Context()), slog.LevelInfo, "audit", attrs...)
}
