package bench

import (
	"fmt"
	"os"
	"strings"
)

// progress is one line at the bottom of a terminal, drawn over itself.
type progress struct {
	out         *os.File // nil: shows nothing
	done, total int
}

func newProgress(f *os.File, total int) *progress {
	p := &progress{total: total}
	if f == nil {
		return p
	}
	if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		p.out = f
	}
	return p
}

const clearLine = "\r\x1b[K"

func (p *progress) show(doing string) {
	if p.out == nil {
		return
	}
	const width = 30
	filled := width * min(p.done, p.total) / max(p.total, 1)
	fmt.Fprintf(p.out, "%s[%s%s] %3d%%  %s", clearLine, strings.Repeat("#", filled),
		strings.Repeat(".", width-filled), 100*p.done/max(p.total, 1), doing)
}

// step says that n more of the total are done, or not needed any more.
func (p *progress) step(n int) { p.done += n }

func (p *progress) end() {
	if p.out != nil {
		fmt.Fprint(p.out, clearLine)
	}
}
