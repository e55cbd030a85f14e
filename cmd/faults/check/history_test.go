package check

import (
	"strings"
	"testing"
	"time"
)

func TestCheck(t *testing.T) {
	at := func(call, end int, o Op) Op {
		o.Key, o.Call, o.Return = "r:t", time.Duration(call), time.Duration(end)
		return o
	}
	lost := func(call int, o Op) Op {
		o = at(call, call, o)
		o.Unknown = true
		return o
	}
	put := func(d string) Op { return Op{Kind: Put, Digest: d} }
	read := func(d string) Op { return Op{Kind: Read, Digest: d} }
	removal := func(d string) Op { return Op{Kind: Removal, Digest: d} }
	gone, none := Op{Kind: Delete, Found: true}, Op{Kind: Delete}
	for _, tc := range []struct {
		name string
		ops  []Op
		ok   bool
	}{
		{"nothing", nil, true},
		{"read of what was put", []Op{at(1, 2, put("a")), at(3, 4, read("a"))}, true},
		{"read of nothing before", []Op{at(1, 2, read("")), at(3, 4, put("a"))}, true},
		{"stale read", []Op{at(1, 2, put("a")), at(3, 4, put("b")), at(5, 6, read("a"))}, false},
		{"lost put", []Op{at(1, 2, put("a")), at(3, 4, read(""))}, false},
		{"either of two at once", []Op{at(1, 4, put("a")), at(2, 3, put("b")), at(5, 6, read("a"))}, true},
		{"one after the other for one reader", []Op{at(1, 9, put("a")), at(1, 9, put("b")), at(2, 3, read("a")), at(4, 5, read("b"))}, true},
		{"there, back, and there again", []Op{at(1, 9, put("a")), at(2, 3, read("a")), at(4, 5, put("b")), at(6, 7, read("b")), at(8, 9, read("a"))}, false},
		{"without an answer, later", []Op{at(1, 2, put("a")), lost(3, put("b")), at(5, 6, read("a")), at(7, 8, read("b"))}, true},
		{"without an answer, never", []Op{at(1, 2, put("a")), lost(3, put("b")), at(5, 6, read("a"))}, true},
		{"without an answer, but not twice", []Op{lost(1, put("b")), at(2, 3, read("b")), at(4, 5, put("a")), at(6, 7, read("b"))}, false},
		{"a read without an answer says nothing", []Op{at(1, 2, put("a")), lost(3, read("b"))}, true},
		{"delete", []Op{at(1, 2, put("a")), at(3, 4, gone), at(5, 6, read(""))}, true},
		{"delete that did not", []Op{at(1, 2, put("a")), at(3, 4, gone), at(5, 6, read("a"))}, false},
		{"delete of nothing", []Op{at(1, 2, none), at(3, 4, put("a"))}, true},
		{"delete that found nothing", []Op{at(1, 2, put("a")), at(3, 4, none)}, false},
		{"delete that found something", []Op{at(1, 2, gone)}, false},
		{"removal of what it names", []Op{at(1, 2, put("a")), at(3, 4, removal("a")), at(5, 6, read(""))}, true},
		{"removal of another", []Op{at(1, 2, put("a")), at(3, 4, removal("b")), at(5, 6, read("a"))}, true},
		{"removal that did not", []Op{at(1, 2, put("a")), at(3, 4, removal("a")), at(5, 6, read("a"))}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := NewHistory()
			for _, o := range tc.ops {
				h.Add(o)
			}
			if wrong := h.Check(time.Minute); (len(wrong) == 0) != tc.ok {
				t.Errorf("%v", wrong)
			}
		})
	}
}

// What is shown of a long history is where it goes wrong.
func TestShortest(t *testing.T) {
	h := NewHistory()
	for i := range 1000 {
		at := time.Duration(10 * i)
		digest := string(rune('a' + i%7))
		if i == 500 {
			digest = "stale"
		}
		h.Add(Op{Key: "r:t", Kind: Put, Digest: string(rune('a' + i%7)), Call: at, Return: at + 1})
		h.Add(Op{Key: "r:t", Kind: Read, Digest: digest, Call: at + 2, Return: at + 3})
	}
	wrong := h.Check(time.Minute)
	if len(wrong) != 1 || !strings.Contains(wrong[0].Error(), "stale") || strings.Count(wrong[0].Error(), string(Read)) != 1 {
		t.Errorf("%v", wrong)
	}
}

// A tag that cannot be decided in time is not taken for good.
func TestUndecided(t *testing.T) {
	h := NewHistory()
	for i := range 200 {
		h.Add(Op{Key: "r:t", Kind: Put, Digest: string(rune(0x4e00 + i)), Return: time.Hour})
	}
	for i := range 200 {
		h.Add(Op{Key: "r:t", Kind: Read, Digest: string(rune(0x4e00 + i*7%199)), Call: time.Minute, Return: time.Hour})
	}
	h.Add(Op{Key: "r:t", Kind: Read, Digest: "never put", Call: time.Minute, Return: time.Hour})
	if wrong := h.Check(50 * time.Millisecond); len(wrong) != 1 || !strings.Contains(wrong[0].Error(), "not decided") {
		t.Errorf("%v", wrong)
	}
}

func TestTwice(t *testing.T) {
	at := func(call, end int, kind Kind, d string) Op {
		return Op{Key: "r:t", Kind: kind, Digest: d, Call: time.Duration(call), Return: time.Duration(end)}
	}
	lost := at(1, 1, Put, "a")
	lost.Unknown = true
	for _, tc := range []struct {
		name string
		ops  []Op
		puts int
		ok   bool
	}{
		{"never read", []Op{at(1, 2, Put, "a")}, 0, true},
		{"read again and again", []Op{at(1, 2, Put, "a"), at(3, 4, Read, "a"), at(5, 6, Read, "a")}, 1, true},
		{"back again", []Op{lost, at(3, 4, Read, "a"), at(5, 6, Read, "b"), at(7, 8, Read, "a")}, 1, false},
		{"back after it was deleted", []Op{lost, at(3, 4, Read, "a"), at(5, 6, Read, ""), at(7, 8, Read, "a")}, 1, false},
		{"back since it was put again", []Op{lost, at(3, 4, Read, "a"), at(5, 6, Read, "b"), at(6, 7, Put, "a"), at(7, 8, Read, "a")}, 0, true},
		{"reads at once", []Op{lost, at(3, 6, Read, "a"), at(5, 7, Read, "b"), at(6, 8, Read, "a")}, 1, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := NewHistory()
			for _, o := range tc.ops {
				h.Add(o)
			}
			if puts, wrong := h.Twice(); puts != tc.puts || (len(wrong) == 0) != tc.ok {
				t.Errorf("%d puts, %v", puts, wrong)
			}
		})
	}
}
