package check

import (
	"fmt"
	"time"
)

// Twice looks for puts that took effect twice: a tag that was put to a digest
// once, and named it, then something else, and then it again. It returns how
// many such puts were read at all, and what is wrong.
func (h *History) Twice() (puts int, wrong []error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for key, ops := range h.ops {
		n, bad := twice(key, ops)
		puts += n
		wrong = append(wrong, bad...)
	}
	return puts, wrong
}

func twice(key string, ops []Op) (puts int, wrong []error) {
	times := map[string]int{}
	for _, o := range ops {
		if o.Kind == Put {
			times[o.Digest]++
		}
	}
	type span struct{ first, last time.Duration } // when it was known first, and was asked for last
	seen := map[string]span{}
	for _, o := range ops {
		if o.Kind != Read || o.Unknown || times[o.Digest] != 1 {
			continue
		}
		s, ok := seen[o.Digest]
		if !ok {
			s = span{first: o.Return, last: o.Call}
		}
		seen[o.Digest] = span{first: min(s.first, o.Return), last: max(s.last, o.Call)}
	}
	for d, s := range seen {
		for _, o := range ops {
			if o.Kind == Read && !o.Unknown && o.Digest != d && o.Call > s.first && o.Return < s.last {
				wrong = append(wrong, fmt.Errorf("%s was put to %.19s once, named it by %.3f, %q by %.3f, and it again when asked at %.3f",
					key, d, s.first.Seconds(), o.Digest, o.Return.Seconds(), s.last.Seconds()))
				break
			}
		}
	}
	return len(seen), wrong
}
