package check

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Kind is what a request does to a tag.
type Kind string

// The requests on a tag.
const (
	Put     Kind = "put"     // the tag names Digest from then on
	Read    Kind = "read"    // answered Digest; "" where there was no such tag
	Delete  Kind = "untag"   // Found says whether there was such a tag
	Removal Kind = "removal" // of the manifest Digest, and with it of the tag if it names that
)

// Op is one request on one tag and what came of it.
type Op struct {
	Key     string // repository and tag
	Kind    Kind
	Digest  string
	Found   bool // of Delete
	Unknown bool // no answer came
	Where   string
	Client  int
	Call    time.Duration // since the history began
	Return  time.Duration
}

func (o Op) String() string {
	end := fmt.Sprintf("%9.3f", o.Return.Seconds())
	if o.Unknown {
		end = "        ?"
	}
	return fmt.Sprintf("%9.3f %s client %d at %s: %s %.19s found=%v", o.Call.Seconds(), end, o.Client, o.Where, o.Kind, o.Digest, o.Found)
}

// History is what happened, from many clients at once.
type History struct {
	mu    sync.Mutex
	begun time.Time
	ops   map[string][]Op
}

// NewHistory begins now.
func NewHistory() *History { return &History{begun: time.Now(), ops: map[string][]Op{}} }

// Now is the time to note in an Op.
func (h *History) Now() time.Duration { return time.Since(h.begun) }

// Add notes a request once it is over.
func (h *History) Add(o Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops[o.Key] = append(h.ops[o.Key], o)
}

// Len is how many requests were noted.
func (h *History) Len() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, ops := range h.ops {
		n += len(ops)
	}
	return n
}

// ErrUndecided says of a tag that the checker came to no end.
var ErrUndecided = errors.New("not decided")

// Check returns what is wrong with each tag's answers: nothing, where they are
// linearizable. A tag that is not decided within the limit counts as wrong.
func (h *History) Check(limit time.Duration) []error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var wrong []error
	for key, ops := range h.ops {
		switch linearizable(ops, limit) {
		case porcupine.Illegal:
			wrong = append(wrong, fmt.Errorf("%s is not linearizable; the shortest part that shows it:\n%s", key, list(shortest(ops, limit))))
		case porcupine.Unknown:
			wrong = append(wrong, fmt.Errorf("%s, within %v over %d requests: %w", key, limit, len(ops), ErrUndecided))
		}
	}
	return wrong
}

// linearizable asks porcupine. A request without an answer stays open to the end.
func linearizable(ops []Op, limit time.Duration) porcupine.CheckResult {
	end := time.Duration(0)
	for _, o := range ops {
		end = max(end, o.Call, o.Return)
	}
	events := make([]porcupine.Operation, 0, len(ops))
	for _, o := range ops {
		if o.Unknown {
			if o.Kind == Read {
				continue
			}
			o.Return = end + 1
		}
		events = append(events, porcupine.Operation{ClientId: o.Client, Input: o, Call: int64(o.Call), Return: int64(o.Return)})
	}
	return porcupine.CheckOperationsTimeout(register(), events, limit)
}

// register is the model: a tag is the digest that it names, or "".
func register() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, input, _ any) (bool, any) {
			o, now := input.(Op), state.(string)
			switch o.Kind {
			case Put:
				return true, o.Digest
			case Read:
				return o.Digest == now, now
			case Delete:
				return o.Unknown || o.Found == (now != ""), ""
			case Removal:
				if now == o.Digest {
					return true, ""
				}
			}
			return true, now
		},
		Equal: func(a, b any) bool { return a == b },
	}
}

// shortest cuts a wrong history down to where it goes wrong: its end by halves,
// and then, one by one, the reads that do not matter.
func shortest(ops []Op, limit time.Duration) []Op {
	ops = slices.Clone(ops)
	slices.SortFunc(ops, func(a, b Op) int { return cmp.Compare(a.Return, b.Return) })
	good, bad := 0, len(ops)
	for bad-good > 1 {
		half := (good + bad) / 2
		if linearizable(prefix(ops, half), limit) == porcupine.Illegal {
			bad = half
		} else {
			good = half
		}
	}
	ops = prefix(ops, bad)
	for i := len(ops) - 1; i >= 0 && len(ops) < 5000; i-- {
		if ops[i].Kind != Read {
			continue
		}
		if without := slices.Delete(slices.Clone(ops), i, i+1); linearizable(without, limit) == porcupine.Illegal {
			ops = without
		}
	}
	return ops
}

// prefix is the history as it was known when its n-th request ended: of those
// under way then, that the later ones had begun.
func prefix(ops []Op, n int) []Op {
	end := ops[n-1].Return
	cut := slices.Clone(ops[:n])
	for _, o := range ops[n:] {
		if o.Call <= end && o.Kind != Read {
			o.Unknown = true
			cut = append(cut, o)
		}
	}
	return cut
}

// list shows requests by the time they began, the last hundred.
func list(ops []Op) string {
	slices.SortFunc(ops, func(a, b Op) int { return cmp.Compare(a.Call, b.Call) })
	var b strings.Builder
	if n := len(ops) - 100; n > 0 {
		fmt.Fprintf(&b, "  (%d before)\n", n)
		ops = ops[n:]
	}
	for _, o := range ops {
		fmt.Fprintf(&b, "  %v\n", o)
	}
	return b.String()
}
