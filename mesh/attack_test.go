package mesh_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/flotilla-registry/flotilla/mesh"
)

// relay passes UDP and TCP on to a gossip port and keeps all that goes to it.
type relay struct {
	addr, target string

	mu      sync.Mutex
	packets [][]byte
	streams []*bytes.Buffer // the bytes to target, of each connection
}

// newRelay listens on a free port, and passes on to one that is free now.
func newRelay(t *testing.T) *relay {
	t.Helper()
	spare, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{target: spare.Addr().String()}
	_ = spare.Close()
	var udp net.PacketConn
	for range 10 { // a port may be free for TCP alone
		r.addr = listen(t, r.stream)
		if udp, err = net.ListenPacket("udp", r.addr); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	target, err := net.ResolveUDPAddr("udp", r.target)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := make([]byte, 64<<10); ; {
			n, _, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			r.mu.Lock()
			r.packets = append(r.packets, bytes.Clone(b[:n]))
			r.mu.Unlock()
			_, _ = udp.WriteTo(b[:n], target) // like any packet, it may be lost
		}
	}()
	t.Cleanup(func() { _ = udp.Close(); <-done })
	return r
}

func (r *relay) stream(c net.Conn) {
	defer c.Close()
	up, err := net.Dial("tcp", r.target)
	if err != nil {
		return
	}
	defer up.Close()
	kept := &bytes.Buffer{}
	r.mu.Lock()
	r.streams = append(r.streams, kept)
	r.mu.Unlock()
	var back sync.WaitGroup
	back.Go(func() { _, _ = io.Copy(c, up); _ = c.Close() })
	_, _ = io.Copy(io.MultiWriter(up, guarded{r, kept}), c)
	_ = up.(*net.TCPConn).CloseWrite()
	back.Wait()
}

// guarded writes under the relay's lock.
type guarded struct {
	r *relay
	b *bytes.Buffer
}

func (g guarded) Write(p []byte) (int, error) {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	return g.b.Write(p)
}

// recorded returns what went through all relays until now.
func recorded(relays ...*relay) (packets, streams [][]byte) {
	for _, r := range relays {
		r.mu.Lock()
		packets = append(packets, r.packets...)
		for _, s := range r.streams {
			streams = append(streams, bytes.Clone(s.Bytes()))
		}
		r.mu.Unlock()
	}
	return packets, streams
}

// inject sends packets and streams to a gossip port, and returns once each
// stream was answered or refused.
func inject(t *testing.T, addr string, packets, streams [][]byte) {
	t.Helper()
	udp, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, p := range packets {
		_, _ = udp.Write(p)
	}
	for _, s := range streams {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(s)
		_ = c.(*net.TCPConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	}
}

// TestReplayedGossip: what was said once, said again by somebody who cannot read
// it, brings nobody back who left and puts nobody out who is here.
func TestReplayedGossip(t *testing.T) {
	relays := []*relay{newRelay(t), newRelay(t), newRelay(t)}
	start := func(i int) *mesh.Members {
		cfg := memberConfig(t, i)
		cfg.Bind, cfg.Advertise = relays[i].target, relays[i].addr
		cfg.Timing = mesh.LAN() // nobody seems down because the machine is busy
		cfg.Timing.Gossip = 20 * time.Millisecond
		m := startMember(t, cfg)
		m.SetRoster(roster(3), 3)
		return m
	}
	leave := func(m *mesh.Members) {
		if err := m.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		closeMember(t, m)
	}
	a, b, c := start(0), start(1), start(2)
	join(t, b, a)
	join(t, c, b)
	for i, m := range []*mesh.Members{a, b, c} {
		eventually(t, m, "all three", func() bool { return sees(m, (i+1)%3, (i+2)%3) })
	}
	leave(c) // its goodbye, and then it is back
	eventually(t, a, "node 2 down", func() bool { return sees(a, 1) })
	c = start(2)
	join(t, c, a)
	eventually(t, a, "node 2 up again", func() bool { return sees(a, 1, 2) })
	leave(b) // for good
	for _, m := range []*mesh.Members{a, c} {
		eventually(t, m, "node 1 down", func() bool { return !slices.Contains(m.Alive(), uuid(1)) && len(m.Alive()) == 2 })
	}

	packets, streams := recorded(relays...)
	if len(packets) == 0 || len(streams) == 0 {
		t.Fatalf("%d packets and %d streams went through the relays", len(packets), len(streams))
	}
	seen, stop := watch(a, c)
	for range 3 {
		inject(t, relays[0].target, packets, streams)
		inject(t, relays[2].target, packets, streams)
	}
	hear(t, a, c, 2)
	hear(t, c, a, 0)
	stop()
	for _, alive := range seen() {
		if slices.Contains(alive, uuid(1)) || len(alive) != 2 {
			t.Errorf("alive after the replay: %v, want node 0 and node 2 throughout", alive)
		}
	}

	// The same bytes do mean something to who has not heard them yet.
	fresh := startMember(t, memberConfig(t, 7))
	inject(t, fresh.Address(), packets, streams)
	eventually(t, fresh, "what was replayed", func() bool { return len(fresh.Peers()) > 1 })
}

// hear returns once m has heard news of node i, which take the same way as all
// that was sent to m before, and come behind it.
func hear(t *testing.T, m, from *mesh.Members, i int) {
	t.Helper()
	news := memberConfig(t, i).Meta
	news.Peer = "127.0.0.1:7777"
	if err := from.UpdateMeta(t.Context(), news); err != nil {
		t.Fatal(err)
	}
	eventually(t, m, "news", func() bool { addr, _ := m.Addr(uuid(i)); return addr == news.Peer })
}

// watch keeps every different list of who is alive, from now until stop.
func watch(all ...*mesh.Members) (seen func() [][]string, stop func()) {
	var lists [][]string
	var mu sync.Mutex
	var watching sync.WaitGroup
	end := make(chan struct{})
	for _, m := range all {
		watching.Go(func() {
			for {
				changed := m.Changed()
				mu.Lock()
				lists = append(lists, m.Alive())
				mu.Unlock()
				select {
				case <-changed:
				case <-end:
					return
				}
			}
		})
	}
	return func() [][]string { mu.Lock(); defer mu.Unlock(); return lists }, func() { close(end); watching.Wait() }
}

// TestGossipFromOutside: without the key, nothing that is sent to a gossip port
// is heard, and the port goes on.
func TestGossipFromOutside(t *testing.T) {
	otherKey := bytes.Repeat([]byte{8}, 32)
	said := map[string]*relay{}
	for name, row := range map[string]struct {
		label string
		key   []byte
	}{
		"a member":         {"flotilla/1", testKey},
		"another key":      {"flotilla/1", otherKey},
		"no key":           {"flotilla/1", nil},
		"another label":    {"flotilla/2", testKey},
		"no label, no key": {"", nil},
	} {
		said[name] = talk(t, row.label, row.key)
	}
	packets, streams := recorded(said["a member"])
	good := slices.Concat(packets, streams)
	bent := make([][]byte, len(good))
	for i, p := range good {
		bent[i] = bytes.Clone(p)
		bent[i][len(p)-1-i%min(len(p), 24)] ^= 1
	}
	short := make([][]byte, len(good))
	for i, p := range good {
		short[i] = p[:len(p)*(i%8)/8]
	}
	type sent struct{ packets, streams [][]byte }
	rows := map[string]sent{
		"bytes changed on the way":   {bent, bent},
		"bytes lost on the way":      {short, short},
		"another program":            {[][]byte{[]byte("GET / HTTP/1.1\r\n\r\n"), {0}, {}, bytes.Repeat([]byte{244}, 60000)}, [][]byte{[]byte("GET / HTTP/1.1\r\n\r\n"), {0}, bytes.Repeat([]byte{244}, 1<<20)}},
		"a member":                   {packets, streams},
		"a member's packets, as TCP": {nil, packets},
	}
	for name, r := range said {
		if name != "a member" {
			p, s := recorded(r)
			rows[name] = sent{p, s}
		}
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			m, friend := startMember(t, memberConfig(t, 0)), startMember(t, memberConfig(t, 1))
			if len(row.packets)+len(row.streams) == 0 {
				t.Fatal("nothing was recorded")
			}
			inject(t, m.Address(), row.packets, row.streams)
			join(t, friend, m)
			if name == "a member" {
				eventually(t, m, "the stranger, who has the key", func() bool { return len(m.Peers()) > 2 })
				return
			}
			hear(t, m, friend, 1)
			if !sees(m, 1) {
				t.Errorf("peers %+v, want the member alone", m.Peers())
			}
		})
	}
}

// talk lets two strangers gossip, and returns what one of them was told.
func talk(t *testing.T, label string, key []byte) *relay {
	t.Helper()
	r := newRelay(t)
	var lists []*memberlist.Memberlist
	for i, bind := range []string{r.target, "127.0.0.1:0"} {
		addr, err := net.ResolveTCPAddr("tcp", bind)
		if err != nil {
			t.Fatal(err)
		}
		conf := memberlist.DefaultLocalConfig()
		conf.Name, conf.BindAddr, conf.BindPort, conf.AdvertisePort = uuid(8+i), "127.0.0.1", addr.Port, 0
		conf.Label, conf.SecretKey, conf.LogOutput, conf.Delegate = label, key, io.Discard, announcer(i)
		if i == 0 {
			way, err := net.ResolveTCPAddr("tcp", r.addr)
			if err != nil {
				t.Fatal(err)
			}
			conf.AdvertiseAddr, conf.AdvertisePort = "127.0.0.1", way.Port
		}
		l, err := memberlist.Create(conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Shutdown() })
		lists = append(lists, l)
	}
	if _, err := lists[1].Join([]string{r.addr}); err != nil {
		t.Fatal(err)
	}
	until(t, "packets between the strangers", func() bool {
		packets, streams := recorded(r)
		return len(packets) > 3 && len(streams) > 0
	})
	return r
}

// announcer tells what a node tells, and no more.
type announcer int

func (a announcer) NodeMeta(int) []byte {
	b, _ := json.Marshal(mesh.Meta{Name: fmt.Sprint("stranger", int(a)), Zone: "default", Peer: "127.0.0.1:1"})
	return b
}
func (announcer) NotifyMsg([]byte)                {}
func (announcer) GetBroadcasts(int, int) [][]byte { return nil }
func (announcer) LocalState(bool) []byte          { return nil }
func (announcer) MergeRemoteState([]byte, bool)   {}
