package auth_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/flotilla-registry/flotilla/api/auth"
)

// BenchmarkRequest is what a request costs: who asks, and whether it may.
func BenchmarkRequest(b *testing.B) {
	n := house(b)
	var rules strings.Builder
	rules.WriteString("rules:\n")
	for i := range 100 {
		fmt.Fprintf(&rules, "- {who: [robot-%d], repositories: [\"team-%d/**\"], allow: [pull, push, list]}\n", i, i)
	}
	rules.WriteString("- {who: [ann], repositories: [\"team-a/**\"], allow: [pull, push, list]}\nanonymous: {pull: [\"public/**\"]}\n")
	n.apply(b, rules.String())
	token := n.token(b, "ann", annPassword, "repository:team-a/x:pull,push")
	for name, row := range map[string]struct {
		r    *http.Request
		repo string
	}{
		"token":     {bearer(token), "team-a/x"},
		"password":  {basic("ann", annPassword), "team-a/x"},
		"anonymous": {show(http.MethodGet, "/v2/", nil), "public/x"},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p, err := n.Identify(row.r)
				if err == nil {
					err = n.Allow(p, row.repo, auth.Pull)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkNewToken is what a token costs that is made and then met first.
func BenchmarkNewToken(b *testing.B) {
	n := house(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := n.Identify(bearer(n.token(b, "ann", annPassword, "repository:team-a/x:pull"))); err != nil {
			b.Fatal(err)
		}
	}
}
