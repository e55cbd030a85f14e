package api

import (
	"errors"
	"net/http"
	"time"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// placing is content on its way in.
type placing struct {
	place func() error                 // has its bytes held durably
	again func() error                 // has them held still, after place
	name  func(placed time.Time) error // names what was placed after that log time
}

// placeAndName stores what r brings: bytes first, then the name, and in between
// a look at whether the sender still may.
//
// As long as nothing names the bytes they go once they are a day old, and a push
// may sleep for that long, or all clocks leap. So the log's time is taken before
// they are placed and goes with the name, which is refused as overdue if half a
// day of it has passed when the entry is applied. The bytes are then placed once
// more, which costs little where they are still held, and named as of the log's
// time now. That is also how the first push gets through after nothing was written
// for long. Where the bytes went, the client is told to push again.
func (s *server) placeAndName(r *http.Request, p placing) error {
	const tries = 3
	place := p.place
	for try := 1; ; try++ {
		placed := s.Catalog.LogTime()
		if err := place(); err != nil {
			return err
		}
		if err := stillMay(r); err != nil {
			return err
		}
		err := p.name(placed)
		if try == tries || !errors.Is(err, oci.ErrOverdue) {
			return err
		}
		place = p.again
	}
}
