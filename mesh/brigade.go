package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// namings is how many neighbours a node takes from the head before it looks
// for a source by itself.
const namings = 4

// smallBlob is up to what size nobody says that it has finished: one request
// less for each. It is named to those who come just behind it all the same.
const smallBlob = 1 << 20

// brigade is this node's part in the lines: the downloads that run here, by
// which others may follow them, and the ledger of those it is the head of.
type brigade struct {
	ledger *ledger

	mu    sync.Mutex
	hunts map[digest.Digest]*hunt // as many as there are downloads
	begun chan struct{}           // closed when hunts gains one
}

func newBrigade(self string) brigade {
	return brigade{ledger: newLedger(self, time.Now()), hunts: map[digest.Digest]*hunt{}, begun: make(chan struct{})}
}

// hunt returns the download of d that runs here, or nil.
func (g *brigade) hunt(d digest.Digest) *hunt {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.hunts[d]
}

// await returns the download of d once there is one, or nil at the end of ctx.
func (g *brigade) await(ctx context.Context, d digest.Digest) *hunt {
	for {
		g.mu.Lock()
		h, begun := g.hunts[d], g.begun
		g.mu.Unlock()
		if h != nil {
			return h
		}
		select {
		case <-begun:
		case <-ctx.Done():
			return nil
		}
	}
}

// spot is where one download stands in the line.
type spot struct {
	at atomic.Int64 // bytes reached

	mu       sync.Mutex
	request  string // the name of the request that a client made
	place    int64
	named    chan struct{} // closed once place is known, or that there is none
	from     string        // the neighbour, "" outside the line
	left     string        // the one that did not serve, until the head knows
	early    bool          // which is alive and lacks the next byte
	moveTo   string        // the neighbour that the head wants instead
	body     io.Closer     // what is being read
	source   string        // who sends it
	stepped  time.Time
	stepping bool
}

// head returns the node that names the neighbours in lines for d in this zone:
// the first live one of those that fetch it for the zone.
func (b *Blobs) head(d digest.Digest) string {
	for _, n := range b.members.Ring().Head(d, b.zone) {
		if n.ID == b.id || !n.Down && !b.avoids(n.ID) {
			return n.ID
		}
	}
	return b.id
}

// stand is a step of this node itself: what it has of d now.
func (b *Blobs) stand(d digest.Digest) step {
	s := step{Node: b.id}
	if b.local.Has(d) {
		s.Done = true
		return s
	}
	if h := b.brigade.hunt(d); h != nil {
		s.At = h.spot.at.Load()
		h.spot.mu.Lock()
		s.Place, s.From = h.spot.place, h.spot.from
		h.spot.mu.Unlock()
	}
	return s
}

// errInTurn has a node wait until another has brought more into the zone.
var errInTurn = errors.New("another node of the zone brings it in")

// take asks the neighbour that the head names for the bytes from off on, and
// the next one where it does not serve. An error means that the line has
// nobody ahead of this node.
func (h *hunt) take(ctx context.Context, off int64) (io.ReadCloser, error) {
	h.join(ctx, off)
	doubts := h.b.distrust.of(h.digest)
	for range namings {
		head := h.b.id
		if h.asks {
			head = h.b.head(h.digest)
		}
		node := h.moved()
		if node != "" {
			clear(h.tried) // that was no fault of theirs
		} else {
			t, err := h.name(ctx, head, off)
			if err != nil && h.b.avoids(head) {
				continue // with the next in rank
			}
			if t.Wait {
				return nil, errInTurn
			}
			node = t.From
		}
		if node == "" || node == h.b.id {
			break
		}
		early := false
		if doubts[node].IsZero() && h.b.mayFollow(node) {
			body, err := h.get(ctx, question{node: node, off: off, gateway: node == head && off == 0, place: h.spot.place})
			if err == nil {
				return body, nil
			}
			early = errors.Is(err, oci.ErrBlobUnknown)
		}
		h.spot.mu.Lock()
		h.spot.from, h.spot.left, h.spot.early = "", node, early
		h.spot.mu.Unlock()
		if node == head || ctx.Err() != nil {
			break
		}
	}
	h.spot.settle(h.spot.place, "")
	return nil, errNobody
}

// mayFollow reports whether node, which a head named, is worth a question: a
// head may err, or know of no change yet.
func (b *Blobs) mayFollow(node string) bool {
	n, known := b.members.Ring().Node(node)
	return known && n.Zone == b.zone && n.ID != b.id && !n.Down && !b.avoids(node)
}

// join makes the download known to those who ask for it here.
func (h *hunt) join(ctx context.Context, off int64) {
	h.b.brigade.mu.Lock()
	h.b.brigade.hunts[h.digest] = h
	close(h.b.brigade.begun)
	h.b.brigade.begun = make(chan struct{})
	h.b.brigade.mu.Unlock()
	h.spot.at.Store(off)
	h.spot.mu.Lock()
	defer h.spot.mu.Unlock()
	h.spot.request = oci.RequestID(ctx)
	if h.spot.moveTo == "" && h.spot.from != "" {
		h.spot.left, h.spot.from, h.spot.early = h.spot.from, "", false
	}
}

// part undoes join.
func (h *hunt) part() {
	h.b.brigade.mu.Lock()
	defer h.b.brigade.mu.Unlock()
	if h.b.brigade.hunts[h.digest] == h {
		delete(h.b.brigade.hunts, h.digest)
	}
}

// moved returns the neighbour that the head wants instead of the last one.
func (h *hunt) moved() string {
	h.spot.mu.Lock()
	defer h.spot.mu.Unlock()
	node := h.spot.moveTo
	if node != "" {
		h.spot.moveTo, h.spot.from = "", node
	}
	return node
}

// name asks head for a neighbour.
func (h *hunt) name(ctx context.Context, head string, off int64) (turn, error) {
	h.spot.mu.Lock()
	s := step{Node: h.b.id, Place: h.spot.place, At: off, Left: h.spot.left, Early: h.spot.early, Ask: true}
	h.spot.mu.Unlock()
	for node := range h.b.distrust.of(h.digest) {
		s.Doubts = append(s.Doubts, node)
	}
	t, err := h.b.sayStep(ctx, head, h.digest, s)
	if err != nil {
		h.b.log.Debug("the head of a line does not answer", "node", head, "digest", h.digest, "error", err, "request", oci.RequestID(ctx))
		return turn{}, err
	}
	h.spot.settle(t.Place, t.From)
	return t, nil
}

// settle takes down what the head said.
func (s *spot) settle(place int64, from string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.place == 0 {
		s.place = max(0, place)
	}
	s.from, s.left, s.stepped = from, "", time.Now()
	select {
	case <-s.named:
	default:
		close(s.named)
	}
}

// stands returns how far the download is and from whom it takes.
func (s *spot) stands() (at int64, from string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at.Load(), s.from
}

// before reports whether the download stands before place, as soon as it
// stands anywhere. That is soon: heads name neighbours without waiting for
// anything.
func (s *spot) before(ctx context.Context, place int64) bool {
	select {
	case <-s.named:
	case <-ctx.Done():
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.place != 0 && s.place < place
}

// sayStep says s to head, which may be this node.
func (b *Blobs) sayStep(ctx context.Context, head string, d digest.Digest, s step) (turn, error) {
	if head == b.id {
		return b.brigade.ledger.step(d, s, b.stand(d), time.Now()), nil
	}
	var t turn
	if err := b.query(ctx, b.patience.Answer, head, "/blobs/"+d.String()+"/line", s, &t); err != nil {
		return turn{}, err
	}
	return t, nil
}

// serveStep answers a node of this zone that takes this one for the head. A node
// speaks for itself alone, whatever name it gives.
func (b *Blobs) serveStep(w http.ResponseWriter, r *http.Request) error {
	d, err := oci.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return err
	}
	var s step
	if err := json.NewDecoder(io.LimitReader(r.Body, maxAnswer)).Decode(&s); err != nil {
		return oci.ErrUnsupported.Because("a step that cannot be read")
	}
	s.Node = caller(r.Context())
	if n, known := b.members.Ring().Node(s.Node); !known || n.Zone != b.zone || s.Node == b.id || s.At < 0 {
		return oci.ErrUnsupported.Because("%.40q is in no line of this zone", s.Node)
	}
	if _, known := b.members.Ring().Node(s.From); !known {
		s.From = ""
	}
	return b.answer(w, b.brigade.ledger.step(d, s, b.stand(d), time.Now()))
}

// follow opens the copy that grows here for a node that has some bytes of it.
// One that has none may wait for the first behind those before it in line.
func (b *Blobs) follow(ctx context.Context, q question) (io.ReadSeekCloser, int64, bool) {
	if q.off == 0 && q.place > 0 {
		if h := b.brigade.hunt(q.digest); h != nil && h.spot.before(ctx, q.place) {
			return b.local.Follow(ctx, q.digest, -1)
		}
	}
	return b.local.Follow(ctx, q.digest, q.off)
}

// fillFor joins or begins the download of a blob for a node of the zone that
// takes this one for the head, and waits for its first byte as long as that node
// stands behind it in line.
func (b *Blobs) fillFor(ctx context.Context, q question) (io.ReadSeekCloser, int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	if q.place > 0 { // else nobody waits for the asker
		watching.Go(func() {
			if h := b.brigade.await(ctx, q.digest); h != nil && !h.spot.before(ctx, q.place) {
				cancel()
			}
		})
	}
	own := b.newHunt(q.digest, false)
	own.repair, own.cause = q.repair, q.cause
	f, size, err := b.local.Fill(ctx, q.digest, own.source)
	cancel()
	watching.Wait()
	return f, size, err
}

// tell reports how far the download is, at most four times a second; the head may
// answer with another neighbour. done is said once, however short ago the last step.
func (h *hunt) tell(done bool) {
	s := &h.spot
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.place == 0 || !done && (s.stepping || time.Since(s.stepped) < stepEvery) {
		return
	}
	s.stepping, s.stepped = true, time.Now()
	said := step{Node: h.b.id, Place: s.place, At: s.at.Load(), From: s.from, Done: done}
	h.b.crew.run(oci.WithRequestID(context.Background(), s.request), func(ctx context.Context) {
		head := h.b.head(h.digest)
		t, err := h.b.sayStep(ctx, head, h.digest, said)
		if err == nil && t.Try != "" {
			said.Tried, said.Speed = t.Try, h.try(ctx, t.Try, said.At)
			said.At, said.From = s.stands()
			t, err = h.b.sayStep(ctx, head, h.digest, said)
		}
		if err != nil {
			h.b.log.Debug("the head of the line does not answer", "digest", h.digest, "error", err, "request", oci.RequestID(ctx))
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stepping = false
		if t.From != s.from && s.body != nil && h.b.mayFollow(t.From) {
			s.moveTo = t.From
			_ = s.body.Close() // the download asks for another source
		}
	})
}
