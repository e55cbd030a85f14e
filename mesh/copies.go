package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh/ring"
)

const (
	// sentBy is the header that names the node whose copy a PUT brings: it knows
	// what 202 means. Who it is, its connection proves.
	sentBy = "Flotilla-Node"
	// reached is the header of 202, which answers a PUT while the blob comes from
	// elsewhere: how many bytes of it are here.
	reached = "Flotilla-Reached"
	// tinyBlob is up to what size a copy is here before anybody could follow it.
	tinyBlob = 64 << 10
	// underWay is how long an answer to a PUT waits for a download that runs
	// already: less than a sender waits before it sends the body unasked.
	underWay = time.Second
)

// errUnderWay says that the blob comes, though not from whoever offers it.
var errUnderWay = errors.New("the blob comes from elsewhere")

// serveCopy takes a copy of a blob. One that is here already is marked used,
// which keeps it from being dropped while the push that offers it goes on, and
// its bytes are not asked for; nor are they where a download brings them. A node
// that is to leave takes none and vouches for none: it may be gone after this.
func (b *Blobs) serveCopy(w http.ResponseWriter, r *http.Request) error {
	d, err := oci.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return err
	}
	if err := b.stays(); err != nil {
		return err
	}
	status := http.StatusOK
	if _, held := b.local.Touch(d); !held {
		err, status = b.receive(w, r, d), http.StatusCreated
	}
	if errors.Is(err, errUnderWay) {
		w.Header().Set(reached, strconv.FormatInt(b.stand(d).At, 10))
		err, status = nil, http.StatusAccepted
	}
	if err == nil {
		// Whoever began to leave meanwhile may have looked before the copy was here;
		// a look that begins after this finds it.
		err = b.stays()
	}
	if err != nil {
		return err
	}
	if status != http.StatusAccepted {
		b.passOn(r, w.Header(), d)
	}
	w.WriteHeader(status)
	return nil
}

// stays returns an error where this node is to leave.
func (b *Blobs) stays() error {
	if self, _ := b.members.Ring().Node(b.id); self.Leaves {
		return oci.ErrUnavailable.Because("this node is being drained")
	}
	return nil
}

// passOn begins to send the copy here to the other nodes of this zone that the
// request names, and names them in the answer. Where too many blobs are on their
// way, the sender has to see to them.
func (b *Blobs) passOn(r *http.Request, answer http.Header, d digest.Digest) {
	named := splitIDs(r.Header.Get(passOn))
	var to, next []ring.Node
	for _, n := range b.members.Ring().Rank(d) {
		if n.Zone == b.zone && n.ID != b.id && !n.Down {
			if slices.Contains(named, n.ID) {
				to = append(to, n)
			} else {
				next = append(next, n)
			}
		}
	}
	if len(to) == 0 {
		return
	}
	select {
	case b.placing <- struct{}{}:
	default:
		return
	}
	p := b.newPlacement(d, to, next)
	if repair, cause := readCause(r); repair {
		p.pace, p.cause = b.pace, cause
	}
	answer.Set(passOn, joinIDs(to))
	p.start(r.Context())
}

// receive makes a durable copy of d out of a request's body. A blob of some size
// is a download like any other, whose first source is the body.
func (b *Blobs) receive(w http.ResponseWriter, r *http.Request, d digest.Digest) error {
	if err := b.local.Full(); err != nil {
		return err
	}
	h, begun := b.newHunt(d, true), false
	h.repair, h.cause = readCause(r)
	body := b.arriving(w, r, &offered{
		r: r.Body, left: r.ContentLength,
		control: http.NewResponseController(w), limit: b.patience.Stall,
	}, func() Cause {
		if !h.repair {
			return CausePush
		}
		return h.why()
	})
	defer body.Close()
	from, known := b.members.Ring().Node(caller(r.Context()))
	if !known || r.Header.Get(sentBy) == "" || r.ContentLength <= tinyBlob { // of a node of an earlier version, or not worth it
		return b.local.Put(r.Context(), d, r.ContentLength, body)
	}
	if !h.repair {
		b.hurry(d) // a push waits for the download that may run
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	late := time.AfterFunc(underWay, func() { cancel(errUnderWay) })
	defer late.Stop()
	err := b.local.Obtain(ctx, d, func(src context.Context, off int64) (io.ReadCloser, int64, error) {
		if !begun {
			begun = true
			late.Stop()
			return h.offer(src, from, body, r.ContentLength), r.ContentLength, nil
		}
		cancel(errUnderWay) // the body is left: its sender need not go on
		return h.source(src, off)
	})
	if err != nil && context.Cause(ctx) == errUnderWay {
		return errUnderWay
	}
	return err
}

// offer makes the body that from sends the first source of a download, and
// gives it a place in the line where this node is the head: others are to find
// it there. Elsewhere it is followed for the bytes that it has.
func (h *hunt) offer(ctx context.Context, from ring.Node, body io.ReadCloser, size int64) io.ReadCloser {
	h.size = size
	h.join(ctx, 0)
	var t turn
	near := "" // who sends from outside the zone is no neighbour
	if from.Zone == h.b.zone {
		near = from.ID
	}
	if h.b.head(h.digest) == h.b.id {
		s := step{Node: h.b.id, From: near}
		t = h.b.brigade.ledger.step(h.digest, s, s, time.Now())
	}
	h.spot.settle(t.Place, near)
	return h.deliver(body, from.ID)
}

// offered is the body of a PUT from a node's disk. It gives up on a sender that
// falls silent; a client's body is not watched so, which may take its time.
// Close may come while Read waits, and frees it.
type offered struct {
	r       io.Reader
	control *http.ResponseController
	limit   time.Duration

	mu     sync.Mutex
	left   int64 // bytes to come; below 0 is unknown
	ended  bool  // there was an end, or an error
	closed bool
}

// Read implements io.Reader.
func (o *offered) Read(p []byte) (int, error) {
	if err := o.watch(); err != nil {
		return 0, err
	}
	n, err := o.r.Read(p)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.left >= 0 {
		o.left -= int64(n)
	}
	if (err != nil || o.left == 0) && !o.closed {
		// The server watches the connection while the disk works.
		o.ended = true
		_ = o.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// watch bounds how long the next Read may wait; not every transport can.
func (o *offered) watch() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return fmt.Errorf("read the body of a copy: %w", http.ErrBodyReadAfterClose)
	}
	if !o.ended {
		_ = o.control.SetReadDeadline(time.Now().Add(o.limit))
	}
	return nil
}

// Close implements io.Closer.
func (o *offered) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed && !o.ended {
		_ = o.control.SetReadDeadline(time.Unix(1, 0))
	}
	o.closed = true
	return nil
}
