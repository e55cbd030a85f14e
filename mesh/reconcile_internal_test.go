package mesh

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"iter"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh/ring"
)

func FuzzQuestion(f *testing.F) {
	good, err := packDigests([]digest.Digest{digest.FromString("a"), digest.SHA512.FromString("b"), digest.FromString("c")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	for _, s := range []string{"", "\x00", "\x01", "\x02", "\x03", "\xff"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ds, err := unpackDigests(b)
		if err != nil {
			return
		}
		for _, d := range ds {
			if err := d.Validate(); err != nil || len(ds) > maxQuestion {
				t.Fatalf("accepted %q among %d: %v", d, len(ds), err)
			}
		}
		if back, err := packDigests(ds); err != nil || !bytes.Equal(back, b) {
			t.Fatalf("%x came back as %x, %v", b, back, err)
		}
	})
}

func TestQuestionsAreBounded(t *testing.T) {
	d := digest.FromString("a")
	question, err := packDigests(slices.Repeat([]digest.Digest{d}, maxQuestion))
	if err != nil {
		t.Fatal(err)
	}
	if ds, err := unpackDigests(question); err != nil || len(ds) != maxQuestion {
		t.Errorf("%d digests, %v", len(ds), err)
	}
	for _, row := range []struct {
		name string
		body []byte
	}{
		{"one blob too many", append(question, question[:33]...)},
		{"more bytes than any question has", make([]byte, maxQuestionBytes+1)},
	} {
		w := httptest.NewRecorder()
		(&Blobs{}).PeerHandler().ServeHTTP(w, httptest.NewRequest("POST", "/blobs/holdings", bytes.NewReader(row.body)))
		if w.Code != 400 {
			t.Errorf("%s: status %d", row.name, w.Code)
		}
	}
	for _, odd := range []digest.Digest{"", "sha256:", "sha256:00", "md5:" + digest.Digest(d.Encoded()), d + "0", "sha256:" + digest.Digest(bytes.Repeat([]byte("x"), 64))} {
		if _, err := packDigests([]digest.Digest{odd}); err == nil {
			t.Errorf("%q was sent", odd)
		}
	}
}

func TestShortlist(t *testing.T) {
	l := shortlist[int]{most: 10, compare: cmp.Compare[int]}
	for i := range 1000 {
		l.add(i * 7919 % 1000)
		if len(l.items) > 20 {
			t.Fatalf("%d items in memory", len(l.items))
		}
	}
	if got := l.sorted(); !slices.Equal(got, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}) || !l.cut {
		t.Errorf("kept %v, cut %v", got, l.cut)
	}
	few := shortlist[int]{most: 10, compare: cmp.Compare[int], items: []int{2, 1}}
	if got := few.sorted(); !slices.Equal(got, []int{1, 2}) || few.cut {
		t.Errorf("kept %v, cut %v", got, few.cut)
	}
}

func TestRepairOrder(t *testing.T) {
	list := []repair{{copies: 0}, {copies: 2}, {copies: 1}, {copies: 3}}
	slices.SortFunc(list, repair.compare)
	var got []int
	for _, r := range list {
		got = append(got, r.copies)
	}
	if !slices.Equal(got, []int{1, 2, 3, 0}) {
		t.Errorf("order %v, want fewest copies first and the hopeless last", got)
	}
}

// TestUnion merges letters: what is held in upper case, what is wanted in lower.
func TestUnion(t *testing.T) {
	broken := errors.New("broken")
	of := func(names string, n naming) iter.Seq2[blob, error] {
		return func(yield func(blob, error) bool) {
			for _, r := range names {
				v, err := blob{digest: digest.Digest(r), held: n == unnamed, naming: n}, error(nil)
				if r == '!' {
					v, err = blob{}, broken
				}
				if !yield(v, err) {
					return
				}
			}
		}
	}
	for _, row := range []struct {
		held, wanted, both string
		stop               int
	}{
		{"", "", "", 9},
		{"ac", "", "+a+c", 9},
		{"", "ac", "-a-c", 9},
		{"acd", "abce", "=a-b=c+d-e", 9},
		{"ab", "cd", "+a+b-c-d", 9},
		{"cd", "ab", "-a-b+c+d", 9},
		{"abc", "abc", "=a=b", 2},
		{"ab!", "abc", "=a=b!", 9},
		{"abc", "a!", "=a!", 9},
		{"!", "a", "!", 9},
		{"!", "", "!", 9},
	} {
		got, n := "", 0
		for v, err := range union(of(row.held, unnamed), of(row.wanted, wanted)) {
			switch {
			case err != nil:
				got += "!"
			case v.held && v.naming == wanted:
				got += "=" + string(v.digest)
			case v.held:
				got += "+" + string(v.digest)
			default:
				got += "-" + string(v.digest)
			}
			if n++; n == row.stop {
				break
			}
		}
		if got != row.both {
			t.Errorf("%q and %q: %q, want %q", row.held, row.wanted, got, row.both)
		}
	}
}

// TestWhoActs: of those who hold a blob exactly one acts for it, whoever is
// asked.
func TestWhoActs(t *testing.T) {
	var nodes []ring.Node
	for i := range 6 {
		nodes = append(nodes, ring.Node{ID: fmt.Sprint("node ", i), Weight: uint32(i % 3)})
	}
	v := blob{owners: ring.New(nodes, 2).Owners(digest.FromString("a"))}
	for holders := 1; holders < 1<<len(nodes); holders++ {
		leaders := 0
		for i := range nodes {
			leads := holders&(1<<i) != 0
			for j := range nodes {
				leads = leads && (j == i || holders&(1<<j) == 0 || !v.before(nodes[j].ID, nodes[i].ID))
			}
			if leads {
				leaders++
			}
		}
		if leaders != 1 {
			t.Fatalf("%d of the holders %b act", leaders, holders)
		}
	}
}
