package mesh

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh/ring"
)

// fixed is a membership that never changes.
type fixed []ring.Node

func (f fixed) Ring() *ring.Ring       { return ring.New(f, 1) }
func (fixed) Down(string) bool         { return false }
func (fixed) Changed() <-chan struct{} { return nil }

// receiver is the only node of zone a, and so the warden of what comes from b.
func receiver(t *testing.T, rate int64) *Blobs {
	b := NewBlobs(BlobsConfig{
		ID: "here", Zone: "a", ZoneRate: rate, Log: slog.New(slog.DiscardHandler),
		Members: fixed{{ID: "here", Zone: "a"}, {ID: "near", Zone: "a", Down: true}, {ID: "far", Zone: "b"}},
	})
	t.Cleanup(b.Close)
	return b
}

// claims returns how many wait for bytes from zone b.
func (b *Blobs) claims() int {
	kept := b.rates.quota("b").kept
	kept.mu.Lock()
	defer kept.mu.Unlock()
	return len(kept.waiting)
}

func always(c Cause) func() Cause { return func() Cause { return c } }

// from returns n bytes as node sends them.
func (b *Blobs) from(node string, n int, why func() Cause) io.ReadCloser {
	return b.across(context.Background(), io.NopCloser(bytes.NewReader(make([]byte, n))), node, int64(n), why)
}

// TestCrossing: several bodies together take the time that the rate says, and
// none where there is no rate or no border.
func TestCrossing(t *testing.T) {
	const kib = 1 << 10
	for _, row := range []struct {
		name   string
		node   string
		rate   int64
		bodies int
		size   int
		took   time.Duration
	}{
		{"one large", "far", 64 * kib, 1, 640 * kib, 10 * time.Second},
		{"several", "far", 64 * kib, 10, 64 * kib, 10 * time.Second},
		{"many small", "far", 64 * kib, 640, kib, 10 * time.Second},
		{"a higher rate", "far", 64 << 20, 4, 16 << 20, time.Second},
		{"no rate", "far", 0, 10, 64 * kib, 0},
		{"the same zone", "near", 64 * kib, 10, 64 * kib, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := receiver(t, row.rate)
				began := time.Now()
				var reading sync.WaitGroup
				for range row.bodies {
					reading.Go(func() {
						body := b.from(row.node, row.size, always(CausePull))
						defer body.Close()
						if n, err := io.Copy(io.Discard, body); n != int64(row.size) || err != nil {
							t.Errorf("%d bytes, %v", n, err)
						}
					})
				}
				reading.Wait()
				if took := time.Since(began); took < row.took*9/10 || took > row.took*11/10 {
					t.Errorf("took %v, want about %v", took, row.took)
				}
				want := int64(row.bodies * row.size)
				if row.node == "near" {
					want = 0
				}
				if got := b.traffic.counter("b", "a", CausePull).Load(); got != want {
					t.Errorf("%d bytes counted, want %d", got, want)
				}
			})
		})
	}
}

// TestCrossingRises: what a client comes to wait for goes on with its right.
func TestCrossingRises(t *testing.T) {
	for _, row := range []struct {
		name        string
		rises       bool
		least, most time.Duration
	}{
		{"a repair", false, 14 * time.Second, 18 * time.Second}, // every 16th grant
		{"a repair that a client waits for", true, 3 * time.Second, 7 * time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := receiver(t, 64<<10)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				for range 3 { // pulls that have no end
					body := b.across(ctx, io.NopCloser(zeros{}), "far", -1, always(CausePull))
					go func() { _, _ = io.Copy(io.Discard, body) }()
				}
				synctest.Wait()
				began := time.Now()
				body := b.from("far", 64<<10, func() Cause {
					if row.rises && time.Since(began) >= time.Second {
						return CausePull
					}
					return CauseRepair
				})
				_, err := io.Copy(io.Discard, body)
				if took := time.Since(began); err != nil || took < row.least || took > row.most {
					t.Errorf("took %v, %v", took, err)
				}
				repair, pull := b.traffic.counter("b", "a", CauseRepair).Load(), b.traffic.counter("b", "a", CausePull).Load()
				if repair == 0 || pull == 0 || row.rises == (repair == 64<<10) {
					t.Errorf("%d bytes count as a repair's, %d as pulls'", repair, pull)
				}
			})
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// TestCrossingCloses: closing frees a Read that waits for an allowance, which leaves
// nothing behind; while it waits, the body says so.
func TestCrossingCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := receiver(t, 64<<10)
		body := b.from("far", 1<<20, always(CausePull))
		held := body.(*crossing).Held
		for range 2 { // the first grant is there
			if _, err := body.Read(make([]byte, minGrant)); err != nil {
				t.Fatal(err)
			}
		}
		if held() {
			t.Error("held back while nobody reads")
		}
		read := make(chan error)
		go func() {
			_, err := body.Read(make([]byte, minGrant))
			read <- err
		}()
		synctest.Wait()
		if !held() || b.claims() != 1 {
			t.Errorf("held back: %v, %d claims; want one", held(), b.claims())
		}
		_ = body.Close()
		if err := <-read; err == nil || held() || b.claims() != 0 {
			t.Errorf("after Close: %v, held back: %v, %d claims", err, held(), b.claims())
		}
	})
}

// TestOutgoingHeldBack: a peer that says that it is alive may take its time.
func TestOutgoingHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		var slow atomic.Int64
		o := newOutgoing(strings.NewReader("x"), limits{
			stall: 10 * time.Second, answer: 15 * time.Second,
			down: func() bool { return false }, slow: func() { slow.Add(1) },
		}, cancel)
		wait := func() {
			for range 20 {
				time.Sleep(9 * time.Second)
				_ = o.alive(http.StatusProcessing, nil)
			}
			if ctx.Err() != nil || slow.Load() > 0 {
				t.Fatalf("given up: %v; called slow %d times", context.Cause(ctx), slow.Load())
			}
		}
		wait()
		_, _ = io.ReadAll(o)
		wait()
		o.wrote(httptrace.WroteRequestInfo{})
		wait()
		time.Sleep(time.Minute)
		if context.Cause(ctx) != errNoAnswer {
			t.Errorf("one that says nothing any more: %v", context.Cause(ctx))
		}
	})
}

// TestAllowance: what is no wish is refused, and an asker that goes leaves nothing.
func TestAllowance(t *testing.T) {
	b := receiver(t, 1) // one grant, and then none for an hour
	ask := asker(t, b, "near")
	for _, other := range []string{"", "far", "unknown"} {
		if status, answer := asker(t, b, other)(t.Context(), `{"from":"b","cause":"pull","bytes":1}`); status != http.StatusBadRequest {
			t.Errorf("asked by node %q: %d %s", other, status, answer)
		}
	}
	for _, row := range []struct{ name, body string }{
		{"nothing", ""},
		{"no JSON", "x"},
		{"no cause", `{"from":"b","bytes":1}`},
		{"another cause", `{"from":"b","cause":"fun","bytes":1}`},
		{"no bytes", `{"from":"b","cause":"pull"}`},
		{"fewer bytes", `{"from":"b","cause":"pull","bytes":-1}`},
		{"too many bytes", `{"from":"b","cause":"pull","bytes":9223372036854775808}`},
		{"waited in the future", `{"from":"b","cause":"pull","bytes":1,"waited":-1}`},
		{"this zone", `{"from":"a","cause":"pull","bytes":1}`},
		{"no zone of the mesh", `{"from":"c","cause":"pull","bytes":1}`},
		{"a long zone", fmt.Sprintf(`{"from":"%s","cause":"pull","bytes":1}`, strings.Repeat("z", 1<<20))},
	} {
		if status, answer := ask(t.Context(), row.body); status != http.StatusBadRequest {
			t.Errorf("%s: %d %s", row.name, status, answer)
		}
	}
	if n := len(b.rates.quotas); n != 0 {
		t.Errorf("%d quotas after that", n)
	}
	for _, want := range []string{`{"bytes":4096,"rate":1}`, `{"bytes":0,"rate":1}`} {
		if status, answer := ask(t.Context(), `{"from":"b","cause":"pull","bytes":9223372036854775807,"waited":9223372036854775807}`); status != http.StatusOK || answer != want {
			t.Errorf("%d %s, want %s", status, answer, want)
		}
	}
	for range maxAsking {
		b.rates.asking <- struct{}{}
	}
	if status, answer := ask(t.Context(), `{"from":"b","cause":"pull","bytes":1}`); status != http.StatusServiceUnavailable {
		t.Errorf("beyond the bound: %d %s", status, answer)
	}
}

// TestAllowanceCancelled: an asker that goes leaves nothing at the warden.
func TestAllowanceCancelled(t *testing.T) {
	b := receiver(t, 1)
	b.patience.Answer = time.Hour // a request waits for a quarter of that
	ask := asker(t, b, "near")
	ctx, cancel := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	for range 10 {
		asking.Go(func() { _, _ = ask(ctx, `{"from":"b","cause":"repair","bytes":4096}`) })
	}
	soon(t, "they wait", func() bool { return b.claims() == 9 }) // one has a grant
	cancel()
	asking.Wait()
	soon(t, "nothing is left", func() bool { return b.claims() == 0 && len(b.rates.asking) == 0 })
}

// asker returns what asks b for an allowance as node, over a socket.
func asker(t *testing.T, b *Blobs, node string) func(ctx context.Context, body string) (status int, answer string) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.PeerHandler().ServeHTTP(w, r.WithContext(WithCaller(r.Context(), node)))
	}))
	t.Cleanup(srv.Close)
	return func(ctx context.Context, body string) (int, string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+"/blobs/allowance", strings.NewReader(body))
		if err != nil {
			return 0, err.Error()
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		answer, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, strings.TrimSpace(string(answer))
	}
}

// soon waits for cond, which nothing announces.
func soon(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

// TestAddTraffic: lists of several nodes add up by route.
func TestAddTraffic(t *testing.T) {
	var sum []Traffic
	for range 3 {
		sum = addTraffic(sum, []Traffic{{"a", "b", CausePull, 1}, {"a", "b", CauseRepair, 2}, {"b", "a", CausePull, 4}})
	}
	want := []Traffic{{"a", "b", CausePull, 3}, {"a", "b", CauseRepair, 6}, {"b", "a", CausePull, 12}}
	if fmt.Sprint(sum) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", sum, want)
	}
}

// TestWarden: all nodes of a zone name the same warden, which is alive, and
// each pair of zones may have another one.
func TestWarden(t *testing.T) {
	nodes := fixed{{ID: "x", Zone: "b"}}
	for i := range 5 {
		nodes = append(nodes, ring.Node{ID: fmt.Sprint(i), Zone: "a"})
	}
	pair := digest.FromString("b a")
	first := nodes.Ring().Gateway(pair, "a")[0].ID
	for _, down := range []bool{false, true} {
		for i := range nodes {
			nodes[i].Down = down && nodes[i].ID == first
		}
		named := map[string]bool{}
		for _, n := range nodes[1:] {
			if n.Down {
				continue
			}
			b := &Blobs{id: n.ID, zone: "a", members: nodes}
			warden, live := b.warden("b")
			named[warden] = true
			if (warden == first) == down || down && live != 4 || !down && live != 5 {
				t.Errorf("node %s names %s of %d, the first of them down: %v", n.ID, warden, live, down)
			}
		}
		if len(named) != 1 {
			t.Errorf("wardens: %v", named)
		}
	}
	alone := &Blobs{id: "new", zone: "c", members: nodes}
	if warden, live := alone.warden("b"); warden != "new" || live != 1 {
		t.Errorf("a node that is no member yet names %s of %d", warden, live)
	}
}
