package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// told is a body that counts what it is told.
type told struct {
	io.ReadCloser
	lied *int
}

func (b told) Lied() { *b.lied++ }

// Whoever had a part in a wrong blob is told, nobody else is.
func TestFillTellsLiars(t *testing.T) {
	b, right := content(3 * holdBack)
	_, wrong := content(10)
	for _, tt := range []struct {
		name   string
		digest digest.Digest
		want   []int // by source
	}{
		{"right", right, []int{0, 0, 0, 0}},
		{"wrong", wrong, []int{1, 0, 1, 1}}, // the first said the size, the second nothing
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStore(t, Config{})
			lied := make([]int, len(tt.want))
			c := &sources{t: t, blob: b, next: []func([]byte) io.ReadCloser{dies(0), dies(0), dies(1), goesOn}}
			src := func(ctx context.Context, off int64) (io.ReadCloser, int64, error) {
				body, size, err := c.open(ctx, off)
				return told{body, &lied[len(c.asked)-1]}, size, err
			}
			if _, err := readFill(t, s, tt.digest, src); (err == nil) != (tt.digest == right) {
				t.Fatal(err)
			}
			must(t, s.Close()) // the fill is over
			if fmt.Sprint(lied) != fmt.Sprint(tt.want) {
				t.Errorf("told %v, want %v", lied, tt.want)
			}
		})
	}
}

// An empty blob has no bytes to hold back: nobody is told of one before it is
// known to be right.
func TestFillOfFalseEmptyBlob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, Config{})
		_, d := content(10)
		r, size, err := s.Fill(t.Context(), d, func(context.Context, int64) (io.ReadCloser, int64, error) {
			return slowClose{bytes.NewReader(nil)}, 0, nil
		})
		if err == nil {
			_ = r.Close()
		}
		if !errors.Is(err, oci.ErrDigestInvalid) {
			t.Errorf("announced %d bytes, err %v", size, err)
		}
		wantFiles(t, s, 0)
	})
}

// slowClose keeps a fill busy after its last byte.
type slowClose struct{ io.Reader }

func (slowClose) Close() error { <-time.After(time.Second); return nil }
