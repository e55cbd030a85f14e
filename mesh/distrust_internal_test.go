package mesh

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestDistrustIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b distrust
		d := digest.FromString("a")
		if !b.add(doubt{"first", d}, time.Now()) || b.add(doubt{"first", d}, time.Now()) {
			t.Error("new once")
		}
		for i := range maxDoubts {
			<-time.After(time.Millisecond)
			b.add(doubt{fmt.Sprint("node", i), d}, time.Now())
		}
		got := b.of(d)
		if _, kept := got["first"]; kept || len(got) != maxDoubts {
			t.Errorf("%d doubts, the oldest among them: %v", len(got), kept)
		}
		if n := len(b.of(digest.FromString("b"))); n != 0 {
			t.Errorf("%d doubts about another blob", n)
		}
		<-time.After(distrustTime)
		if n := len(b.of(d)); n != 0 || len(b.when) != 0 {
			t.Errorf("%d doubts remembered for ever, %d in memory", n, len(b.when))
		}
	})
}
