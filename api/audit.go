package api

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/gorilla/mux"
)

// audit writes the line that says who did what: of each request that changes
// something or is refused for who sent it, and of all others but probes where
// AuditPulls is set. It names no header, no query and no body, since these may
// hold secrets.
func (s *server) audit(r *http.Request, id string, v *visit, served Served) {
	if s.Audit == nil || v.action == "" {
		return
	}
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	refused := served.Status == http.StatusUnauthorized || served.Status == http.StatusForbidden ||
		served.Status == http.StatusTooManyRequests
	if reads && !refused && !s.AuditPulls {
		return
	}
	attrs := []slog.Attr{
		slog.String("account", v.name), slog.String("remote", r.RemoteAddr),
		slog.String("action", v.action), slog.String("route", served.Route), slog.String("method", r.Method),
	}
	vars := mux.Vars(r)
	for _, what := range []struct{ variable, key string }{
		{"name", "repository"}, {"reference", "reference"}, {"digest", "reference"}, {"id", "upload"},
		{"member", "member"}, {"account", "subject"},
	} {
		if value := vars[what.variable]; value != "" {
			attrs = append(attrs, slog.String(what.key, shorten(value)))
		}
	}
	if v.subject != "" {
		attrs = append(attrs, slog.String("subject", v.subject))
	}
	attrs = append(attrs, slog.Int("status", served.Status), slog.String("request", id))
	s.Audit.LogAttrs(context.WithoutCancel(r.Context()), slog.LevelInfo, "audit", attrs...)
}
