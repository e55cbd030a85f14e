package mesh_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/mesh"
)

// pullAll has all of peers read content at once.
func pullAll(t *testing.T, peers []*peer, content []byte) *sync.WaitGroup {
	wg := new(sync.WaitGroup)
	for _, p := range peers {
		wg.Go(func() {
			if got, err := p.read(t.Context(), digest.FromBytes(content)); err != nil || !bytes.Equal(got, content) {
				t.Errorf("node %s: %d bytes, %v", p.id, len(got), err)
			}
		})
	}
	return wg
}

// holdBytesUntil holds back the bytes that p sends until as many steps were
// said to it: so all ask at the same moment.
func (p *peer) holdBytesUntil(steps int64) {
	named := make(chan struct{})
	var said atomic.Int64
	p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		step := strings.HasSuffix(r.URL.Path, "/line")
		if !step {
			select {
			case <-named:
			case <-r.Context().Done():
				return
			}
		}
		next.ServeHTTP(w, r)
		if step && said.Add(1) == steps {
			close(named)
		}
	})
}

// requests counts what p was asked.
func (p *peer) requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ids)
}

// TestLine: all nodes want a blob at the same moment. Each sends it once at
// most, the one that has it included. It is too small for trials.
func TestLine(t *testing.T) {
	c := newCluster(t, option{replicas: 1, silence: time.Minute}, "a", "-a", "-a", "-a", "-a", "-a")
	content := bytesOf(11, 100<<10)
	c.nodes[0].hold(t, content)
	c.nodes[0].holdBytesUntil(5)
	pullAll(t, c.nodes[1:], content).Wait()
	total := int64(0)
	for _, p := range c.nodes {
		sent := p.blobs.Stats().BytesToPeers
		if sent > int64(len(content)) {
			t.Errorf("node %s sent %d bytes of %d", p.id, sent, len(content))
		}
		total += sent
	}
	if want := int64(5 * len(content)); total != want {
		t.Errorf("%d bytes were sent in all, want %d", total, want)
	}
}

// TestSlowHeadOfLine: who asked first gets its bytes slowly. The others do not
// wait for it: they soon take from its source past it.
func TestSlowHeadOfLine(t *testing.T) {
	c := newCluster(t, option{replicas: 1, silence: time.Minute}, "a", "-a", "-a", "-a")
	content := bytesOf(16, 16<<20)
	owner, slow := c.nodes[0], c.nodes[1]
	owner.hold(t, content)
	var drops atomic.Int64
	owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && r.Header.Get("X-Caller") == slow.id {
			drip := time.NewTicker(250 * time.Millisecond)
			defer drip.Stop()
			w = &dripping{w, r.Context(), drip.C, &drops}
		}
		next.ServeHTTP(w, r)
	})
	ctx, leave := context.WithCancel(t.Context())
	var first sync.WaitGroup
	defer first.Wait()
	defer leave()
	first.Go(func() { _, _ = slow.read(ctx, digest.FromBytes(content)) }) // in half a minute or more
	until(t, "the slow node takes from the owner", func() bool { return drops.Load() > 0 })
	pullAll(t, c.nodes[2:], content).Wait()
	if got := drops.Load() * drop; got > int64(len(content))/2 {
		t.Errorf("the others waited until the slow node had %d bytes of %d", got, len(content))
	}
}

// dripping sends a little at each tick.
type dripping struct {
	http.ResponseWriter
	ctx   context.Context
	tick  <-chan time.Time
	drops *atomic.Int64
}

const drop = 64 << 10

func (d *dripping) Unwrap() http.ResponseWriter { return d.ResponseWriter }

func (d *dripping) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		select {
		case <-d.tick:
		case <-d.ctx.Done():
			return n, d.ctx.Err()
		}
		var m int
		m, err = d.ResponseWriter.Write(p[n:min(n+drop, len(p))])
		n += m
		d.drops.Add(1)
		_ = http.NewResponseController(d.ResponseWriter).Flush()
	}
	return n, err
}

// TestDeadNeighbour: a neighbour that dies in the middle is replaced at the
// byte reached, and who had the blob first is not asked for it again.
func TestDeadNeighbour(t *testing.T) {
	c := newCluster(t, option{replicas: 1, silence: time.Minute}, "a", "-a", "-a")
	content := bytesOf(12, 2<<20)
	d := digest.FromBytes(content)
	owner := c.nodes[0]
	owner.hold(t, content)
	owner.holdBytesUntil(2)
	var cut atomic.Int64
	var mu sync.Mutex
	var ranges []string
	for _, p := range c.nodes[1:] {
		p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodGet && cut.CompareAndSwap(0, 1) {
				next.ServeHTTP(&cutAfter{w, 1 << 20}, r)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	inner := owner.tamper
	owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, d.String()) {
			mu.Lock()
			ranges = append(ranges, r.Header.Get("Range"))
			mu.Unlock()
		}
		inner(w, r, next)
	})
	pullAll(t, c.nodes[1:], content).Wait()
	if cut.Load() == 0 {
		t.Fatal("neither node took from the other")
	}
	mu.Lock()
	defer mu.Unlock()
	for _, from := range ranges[1:] {
		if from == "" {
			t.Errorf("asked again for the whole: %q", ranges)
		}
	}
}

// TestLostHead: the gateway of a zone dies in the middle. Nobody waits for
// anybody for ever, and the next in rank goes on with the bytes that there are.
func TestLostHead(t *testing.T) {
	for _, half := range []int{0, 1 << 20} {
		c := newCluster(t, option{
			replicas: 1, silence: 500 * time.Millisecond,
			patience: mesh.Patience{Answer: 2 * time.Second, Gateway: 2 * time.Second, Persist: 20 * time.Second, Pause: 10 * time.Millisecond},
		}, "b", "-a", "-a", "-a", "-a")
		content := bytesOf(13, 2<<20)
		d := digest.FromBytes(content)
		owner, gateway := c.nodes[0], c.peer(c.Ring().Head(d, "a")[0].ID)
		owner.hold(t, content)
		// The gateway gets one half and then nothing.
		stuck, dead := make(chan struct{}), make(chan struct{})
		var first, whole atomic.Int64
		owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method == http.MethodGet && first.CompareAndSwap(0, 1) {
				close(stuck)
				next.ServeHTTP(&gated{w, half, dead}, r)
				return
			}
			if r.Method == http.MethodGet && r.Header.Get("Range") == "" {
				whole.Add(1)
			}
			next.ServeHTTP(w, r)
		})
		var others []*peer
		for _, p := range c.nodes[1:] {
			if p != gateway {
				others = append(others, p)
			}
		}
		pulls := pullAll(t, others, content)
		<-stuck
		until(t, "the others have what the gateway has", func() bool {
			for _, p := range others {
				if p.store.Stats().BytesWritten < int64(half)-64<<10 || p.store.Stats().FillsStarted == 0 {
					return false
				}
			}
			return true
		})
		gateway.kill()
		c.setDown(gateway, true)
		pulls.Wait()
		close(dead)
		if n := whole.Load(); half > 0 && n > 0 {
			t.Errorf("the whole blob was asked for across the line %d more times", n)
		}
	}
}

// TestCutLine: the line to the zone is cut in the middle of a pull and comes
// back. One node goes on where the zone had got to, and the others wait for it.
func TestCutLine(t *testing.T) {
	c := newCluster(t, option{replicas: 1, silence: 300 * time.Millisecond}, "b", "-a", "-a", "-a", "-a")
	content := bytesOf(14, 4<<20)
	d := digest.FromBytes(content)
	owner := c.nodes[0]
	owner.hold(t, content)
	const half = 2 << 20
	var first, refused atomic.Int64
	var back atomic.Bool
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch {
		case r.Method != http.MethodGet || back.Load():
			next.ServeHTTP(w, r)
		case first.CompareAndSwap(0, 1):
			next.ServeHTTP(&gated{w, half, over}, r)
		default:
			refused.Add(1)
			panic(http.ErrAbortHandler)
		}
	})
	pulls := pullAll(t, c.nodes[1:], content)
	until(t, "the line is missed", func() bool { return refused.Load() >= 5 })
	back.Store(true)
	pulls.Wait()
	whole := 0
	for _, p := range c.nodes[1:] {
		if p.store.Has(d) {
			whole++
		}
	}
	if sent := owner.blobs.Stats().BytesToPeers; whole != 4 || sent > int64(len(content))+half/2 {
		t.Errorf("%d nodes have it, and %d bytes crossed the line for %d", whole, sent, len(content))
	}
}

// TestStrangeHead: a head that knows of no lines, as one of an earlier version,
// or names whom there is not, costs its zone nothing but the line.
func TestStrangeHead(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"of an earlier version":      http.NotFound,
		"with an answer of no sense": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("[")) },
		"that names nobody's address": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"place":-5,"from":"` + uuid(99) + `"}`))
		},
		"that names another zone": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"place":5,"from":"` + uuid(3) + `"}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, option{replicas: 1}, "a", "-a", "-a", "-b")
			head, other := c.nodes[0], c.nodes[3]
			content := bytesOf(15, 100<<10)
			head.hold(t, content)
			head.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.HasSuffix(r.URL.Path, "/line") {
					answer(w, r)
					return
				}
				next.ServeHTTP(w, r)
			})
			pullAll(t, c.nodes[1:3], content).Wait()
			if n := other.requests(); n > 0 {
				t.Errorf("the node of the other zone was asked %d times", n)
			}
			if _, err := c.nodes[1].read(t.Context(), digest.FromString("nothing")); !errors.Is(err, oci.ErrBlobUnknown) {
				t.Errorf("what nobody has: %v", err)
			}
		})
	}
}

// finished returns a function that reports whether p was told that a download of d is done.
func (p *peer) finished() func(d digest.Digest) bool {
	var told sync.Map
	p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		var said bytes.Buffer
		if strings.HasSuffix(r.URL.Path, "/line") {
			r.Body = io.NopCloser(io.TeeReader(r.Body, &said))
		}
		next.ServeHTTP(w, r)
		if strings.Contains(said.String(), `"done":true`) {
			told.Store(r.URL.Path, true)
		}
	})
	return func(d digest.Digest) bool {
		_, ok := told.Load("/blobs/" + d.String() + "/line")
		return ok
	}
}

// TestGoneNeighbour: a node that finished and is down since is not waited for.
func TestGoneNeighbour(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "-a", "-a")
	owner, gone := c.nodes[0], c.nodes[1]
	content := bytesOf(16, 2<<20)
	owner.hold(t, content)
	told := owner.finished()
	gone.mustRead(t, content)
	until(t, "the head knows that it has finished", func() bool { return told(digest.FromBytes(content)) })
	c.setDown(gone, true)
	c.nodes[2].mustRead(t, content)
	if n := gone.requests(); n > 0 {
		t.Errorf("it was asked %d times", n)
	}
}

// TestSmallBlob: its end is not worth a step. Who comes behind gets it all
// the same.
func TestSmallBlob(t *testing.T) {
	c := newCluster(t, option{replicas: 1, silence: time.Minute}, "a", "-a", "-a")
	owner, first := c.nodes[0], c.nodes[1]
	small, large := bytesOf(17, 1000), bytesOf(18, 2<<20)
	owner.hold(t, small)
	owner.hold(t, large)
	told := owner.finished()
	first.mustRead(t, small)
	first.mustRead(t, large)
	until(t, "the head knows of the large one", func() bool { return told(digest.FromBytes(large)) })
	if told(digest.FromBytes(small)) {
		t.Error("the head was told of the small one's end")
	}
	c.nodes[2].mustRead(t, small)
}

// TestSpeaksForItself: what a node says in the name of another is its own word.
// Who is not proved to be anybody is not heard.
func TestSpeaksForItself(t *testing.T) {
	c := newCluster(t, option{replicas: 1}, "a", "-a", "-a", "-a")
	head, liar, other, asker := c.nodes[0], c.nodes[1], c.nodes[2], c.nodes[3]
	d := digest.FromString("a blob")
	say := func(caller, step string) (status int, from string) {
		client := c.client(caller)
		defer client.CloseIdleConnections()
		resp, err := client.Post("https://"+head.id+"/blobs/"+d.String()+"/line", "application/json", strings.NewReader(step))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var turn struct{ From string }
		_ = json.NewDecoder(resp.Body).Decode(&turn) // an error has another form
		return resp.StatusCode, turn.From
	}
	if status, _ := say("", `{"node":"`+other.id+`","at":9,"done":true}`); status != http.StatusBadRequest {
		t.Errorf("nobody's step: status %d", status)
	}
	if status, _ := say(liar.id, `{"node":"`+other.id+`","at":9,"done":true}`); status != http.StatusOK {
		t.Errorf("a step: status %d", status)
	}
	if _, from := say(asker.id, `{"node":"`+asker.id+`","at":1,"ask":true}`); from != liar.id {
		t.Errorf("named %q, want %s, who alone said something", from, liar.id)
	}
}

// TestStoppedNeighbour: a neighbour that does not say that it is alive is left
// as soon as any node is that gives no answer; one that says so is waited for.
func TestStoppedNeighbour(t *testing.T) {
	const answer = 2 * time.Second
	for name, row := range map[string]struct {
		before func(w http.ResponseWriter, r *http.Request) // the answer
		asked  int                                          // how often the head is
	}{
		"stopped": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 2},
		"waiting": {func(w http.ResponseWriter, _ *http.Request) {
			for began := time.Now(); time.Since(began) < 2*answer; {
				w.WriteHeader(http.StatusProcessing)
				<-time.After(answer / 20)
			}
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, option{replicas: 1, patience: mesh.Patience{Answer: answer, Gateway: time.Hour, Persist: time.Minute}}, "a", "-a", "-a")
			owner := c.nodes[0]
			content := bytesOf(19, 2<<20)
			owner.hold(t, content)
			owner.holdBytesUntil(2)
			var gets atomic.Int64
			inner := owner.tamper
			owner.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if r.Method == http.MethodGet {
					gets.Add(1)
				}
				inner(w, r, next)
			})
			for _, p := range c.nodes[1:] {
				p.setTamper(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					if r.Method == http.MethodGet {
						row.before(w, r)
					}
					next.ServeHTTP(w, r)
				})
			}
			pullAll(t, c.nodes[1:], content).Wait()
			if n := gets.Load(); n != int64(row.asked) {
				t.Errorf("who has the blob was asked for it %d times, want %d", n, row.asked)
			}
		})
	}
}
