package mesh_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/mesh"
)

var testKey = bytes.Repeat([]byte{7}, 32)

func uuid(i int) string { return fmt.Sprintf("6fa459ea-ee8a-4ca4-894e-%012d", i) }

// logBuffer holds what a node logged.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func quietLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// memberConfig is a node on 127.0.0.1; tests change what they are about.
func memberConfig(t *testing.T, i int) mesh.Config {
	return mesh.Config{
		ID:   uuid(i),
		Meta: mesh.Meta{Name: fmt.Sprint("node", i), Zone: "default", Peer: fmt.Sprint("127.0.0.1:", 6000+i)},
		Bind: "127.0.0.1:0", Keys: [][]byte{testKey}, StatePath: filepath.Join(t.TempDir(), "members.json"),
		Timing: mesh.Fast(), Log: quietLog(),
	}
}

func startMember(t *testing.T, cfg mesh.Config) *mesh.Members {
	t.Helper()
	m, err := mesh.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeMember(t, m) })
	return m
}

func closeMember(t *testing.T, m *mesh.Members) {
	t.Helper()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func join(t *testing.T, m *mesh.Members, others ...*mesh.Members) {
	t.Helper()
	for _, o := range others {
		if _, err := m.Join(t.Context(), []string{o.Address()}); err != nil {
			t.Fatal(err)
		}
	}
}

// eventually waits for cond, looking again whenever m changes.
func eventually(t *testing.T, m *mesh.Members, what string, cond func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		changed := m.Changed()
		if cond() {
			return
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond): // conditions on other things than m
		case <-limit:
			t.Fatalf("never saw: %s (peers %+v)", what, m.Peers())
		}
	}
}

func sees(m *mesh.Members, others ...int) bool {
	var got []string
	for _, p := range m.Peers() {
		got = append(got, p.ID)
	}
	want := []string{m.ID()}
	for _, o := range others {
		want = append(want, uuid(o))
	}
	slices.Sort(got)
	slices.Sort(want)
	return slices.Equal(got, want)
}

func roster(n int) []mesh.RosterMember {
	out := make([]mesh.RosterMember, n)
	for i := range out {
		out[i] = mesh.RosterMember{ID: uuid(i), Zone: "default", Weight: 1}
	}
	return out
}

func TestMeshOfThree(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			all := make([]*mesh.Members, 3)
			for i := range all {
				cfg := memberConfig(t, i)
				cfg.Bind = net.JoinHostPort(host, "0")
				all[i] = startMember(t, cfg)
				all[i].SetRoster(roster(3), 3)
			}
			join(t, all[1], all[0])
			join(t, all[2], all[1])
			for i, m := range all {
				eventually(t, m, "all three", func() bool { return sees(m, (i+1)%3, (i+2)%3) && len(m.Alive()) == 3 })
			}

			meta := memberConfig(t, 1).Meta
			meta.Peer = "[::1]:7777"
			if err := all[1].UpdateMeta(t.Context(), meta); err != nil {
				t.Fatal(err)
			}
			eventually(t, all[0], "the new peer address", func() bool {
				addr, ok := all[0].Addr(uuid(1))
				return ok && addr == "[::1]:7777"
			})

			if err := all[2].Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			closeMember(t, all[2])
			for i, m := range all[:2] {
				eventually(t, m, "the third leave", func() bool { return sees(m, 1-i) && m.Down(uuid(2)) })
				node, ok := m.Ring().Node(uuid(2))
				if !ok || !node.Down || len(m.Ring().Nodes()) != 3 {
					t.Errorf("who left still owns its blobs and is down: %+v, in the ring %v", node, ok)
				}
				if addr, ok := m.Addr(uuid(2)); !ok || addr != "127.0.0.1:6002" {
					t.Errorf("address of who left: %q, %v", addr, ok)
				}
			}
		})
	}
}

func TestCrashIsSeen(t *testing.T) {
	a, b := startMember(t, memberConfig(t, 0)), startMember(t, memberConfig(t, 1))
	a.SetRoster(roster(2), 2)
	join(t, b, a)
	eventually(t, a, "the other", func() bool { return sees(a, 1) })
	closeMember(t, b)
	eventually(t, a, "the crash", func() bool { return a.Down(uuid(1)) && len(a.Alive()) == 1 })
}

// TestNotMetYet: after a start nobody has been seen, which is no reason to
// call anyone dead.
func TestNotMetYet(t *testing.T) {
	cfg := memberConfig(t, 0)
	cfg.Timing.Settle = time.Hour
	slow := startMember(t, cfg)
	slow.SetRoster(roster(2), 2)
	if slow.Down(uuid(1)) || len(slow.Alive()) != 1 {
		t.Error("a member not met yet is down or alive at once; it is neither")
	}
	fast := startMember(t, memberConfig(t, 0))
	fast.SetRoster(roster(2), 2)
	eventually(t, fast, "the grace end", func() bool {
		n, _ := fast.Ring().Node(uuid(1))
		return n.Down && fast.Down(uuid(1))
	})
}

// TestOwnsNothing: who is draining or out keeps nobody's blobs from now on, and
// is asked for what it has.
func TestOwnsNothing(t *testing.T) {
	m := startMember(t, memberConfig(t, 0))
	list := roster(4)
	list[1].Draining, list[2].Out = true, true
	m.SetRoster(list, 3)
	d := digest.FromString("a blob")
	var owners []string
	for _, n := range m.Ring().Owners(d) {
		owners = append(owners, n.ID)
	}
	slices.Sort(owners)
	if want := []string{uuid(0), uuid(3)}; !slices.Equal(owners, want) {
		t.Errorf("owners %v, want %v", owners, want)
	}
	for _, n := range m.Ring().Nodes() {
		if n.Leaves != (n.ID == uuid(1)) {
			t.Errorf("%s leaves: %v", n.ID, n.Leaves)
		}
	}
	if n := len(m.Ring().Sources(d, uuid(0), "default")); n != 3 {
		t.Errorf("%d sources, want all others", n)
	}
}

func TestOtherMeshIsNotAlive(t *testing.T) {
	var said logBuffer
	a := memberConfig(t, 0)
	a.Meta.Cluster, a.Log = uuid(100), slog.New(slog.NewTextHandler(&said, nil))
	mine := startMember(t, a)
	mine.SetRoster(roster(2), 2)
	newcomer := startMember(t, memberConfig(t, 1))
	join(t, newcomer, mine)
	eventually(t, mine, "the newcomer of no mesh", func() bool { return sees(mine, 1) })

	meta := memberConfig(t, 1).Meta
	meta.Cluster = uuid(101)
	if err := newcomer.UpdateMeta(t.Context(), meta); err != nil {
		t.Fatal(err)
	}
	eventually(t, mine, "it join another mesh", func() bool { return sees(mine) && mine.Down(uuid(1)) && len(mine.Alive()) == 1 })
	eventually(t, newcomer, "it ignore us too", func() bool { return sees(newcomer) })
	meta.Level = 2 // a second announcement is not logged again
	if err := newcomer.UpdateMeta(t.Context(), meta); err != nil {
		t.Fatal(err)
	}
	meta.Cluster = uuid(100)
	if err := newcomer.UpdateMeta(t.Context(), meta); err != nil {
		t.Fatal(err)
	}
	eventually(t, mine, "it join ours", func() bool { return sees(mine, 1) && !mine.Down(uuid(1)) })
	if n := strings.Count(said.String(), "another mesh"); n != 1 {
		t.Errorf("%d lines about another mesh, want one:\n%s", n, said.String())
	}
}

// TestRestartAtNewAddress: killed, and back elsewhere before anyone noticed.
func TestRestartAtNewAddress(t *testing.T) {
	var said logBuffer
	patient := func(i int) mesh.Config { // what heals is the notice of the claim, not the clock
		cfg := memberConfig(t, i)
		cfg.Timing.Rejoin, cfg.Timing.PushPull = time.Hour, time.Hour
		return cfg
	}
	watched := patient(0)
	watched.Log = slog.New(slog.NewTextHandler(&said, nil))
	a, c := startMember(t, watched), startMember(t, patient(2))
	cfg := patient(1)
	b := startMember(t, cfg)
	join(t, b, a)
	join(t, c, a)
	for _, m := range []*mesh.Members{a, b, c} {
		m.SetRoster(roster(3), 3)
		eventually(t, m, "all three", func() bool { return len(m.Alive()) == 3 })
	}
	old := b.Address()
	closeMember(t, b)
	ups := func() int { return strings.Count(said.String(), `msg="node is up" node=node1`) }
	before := ups()

	cfg.Meta.Peer = "127.0.0.1:7001"
	again := startMember(t, cfg) // no Join: its file knows the others
	if again.Address() == old {
		t.Skip("the kernel gave the old port again")
	}
	eventually(t, again, "the others", func() bool { return sees(again, 0, 2) })
	for _, m := range []*mesh.Members{a, c} {
		eventually(t, m, "the new addresses", func() bool {
			addr, _ := m.Addr(uuid(1))
			return addr == "127.0.0.1:7001" && len(m.Alive()) == 3 && slices.ContainsFunc(m.Peers(), func(p mesh.Peer) bool {
				return p.ID == uuid(1) && p.Gossip == again.Address()
			})
		})
	}
	// So far that is a claim. Gossip itself follows once it has given up the
	// old address, with a second step down where late news of the old self
	// overtakes the new one's.
	eventually(t, a, "gossip move to the new address", func() bool {
		return ups() > before && len(a.Alive()) == 3
	})
}

// TestEverythingRestarts: all stop, all start with no seed and no Join.
func TestEverythingRestarts(t *testing.T) {
	configs := make([]mesh.Config, 3)
	all := make([]*mesh.Members, 3)
	for i := range all {
		configs[i] = memberConfig(t, i)
		all[i] = startMember(t, configs[i])
		all[i].SetRoster(roster(3), 3)
		configs[i].Bind = all[i].Address()
	}
	join(t, all[1], all[0])
	join(t, all[2], all[0])
	for _, m := range all {
		eventually(t, m, "all three", func() bool { return len(m.Alive()) == 3 })
	}
	for _, m := range all {
		closeMember(t, m)
	}
	for i := range all {
		all[i] = startMember(t, configs[i])
		all[i].SetRoster(roster(3), 3)
	}
	for _, m := range all {
		eventually(t, m, "all three again", func() bool { return len(m.Alive()) == 3 })
	}
}

func TestStateFile(t *testing.T) {
	t.Run("removed members are forgotten", func(t *testing.T) {
		cfg := memberConfig(t, 0)
		m := startMember(t, cfg)
		other := startMember(t, memberConfig(t, 1))
		join(t, other, m)
		eventually(t, m, "the other", func() bool { return sees(m, 1) })
		closeMember(t, other)
		eventually(t, m, "it go", func() bool { return sees(m) })
		eventually(t, m, "the file", func() bool { b, _ := os.ReadFile(cfg.StatePath); return strings.Contains(string(b), uuid(1)) })
		m.SetRoster(roster(1), 1)
		eventually(t, m, "it gone from the file", func() bool {
			b, err := os.ReadFile(cfg.StatePath)
			return err == nil && !strings.Contains(string(b), uuid(1))
		})
		if _, ok := m.Addr(uuid(1)); ok {
			t.Error("a removed member still has an address")
		}
	})
	t.Run("broken", func(t *testing.T) {
		cfg := memberConfig(t, 0)
		if err := os.WriteFile(cfg.StatePath, []byte("{half"), 0o600); err != nil {
			t.Fatal(err)
		}
		if m := startMember(t, cfg); !sees(m) {
			t.Error("peers out of nowhere")
		}
	})
	t.Run("unreadable", func(t *testing.T) {
		cfg := memberConfig(t, 0)
		cfg.StatePath = t.TempDir() // a folder
		if m, err := mesh.Start(t.Context(), cfg); err == nil {
			closeMember(t, m)
			t.Error("started without its file")
		}
	})
}

// TestSeedsFindALoner: no file, no Join, and the seed starts later.
func TestSeedsFindALoner(t *testing.T) {
	first := startMember(t, memberConfig(t, 0))
	address := first.Address()
	closeMember(t, first)
	cfg := memberConfig(t, 1)
	cfg.Seeds = []string{address}
	loner := startMember(t, cfg)
	late := memberConfig(t, 0)
	late.Bind = address
	startMember(t, late)
	eventually(t, loner, "the seed", func() bool { return sees(loner, 0) })
}

func TestStartRefuses(t *testing.T) {
	taken := startMember(t, memberConfig(t, 0))
	for _, row := range []struct {
		name   string
		change func(*mesh.Config)
		words  string
	}{
		{"port in use", func(c *mesh.Config) { c.Bind = taken.Address() }, "address already in use"},
		{"no advertise", func(c *mesh.Config) { c.Bind = ":0" }, "must be given"},
		{"advertise does not resolve", func(c *mesh.Config) { c.Advertise = "no-such-host.invalid" }, "no-such-host"},
		{"short key", func(c *mesh.Config) { c.Keys = [][]byte{testKey, []byte("short")} }, "32 bytes"},
		{"too long", func(c *mesh.Config) { c.Meta.Zone = strings.Repeat("z", 500) }, "bytes together"},
		{"bad peer address", func(c *mesh.Config) { c.Meta.Peer = "nowhere" }, "peer address"},
		{"bad bind", func(c *mesh.Config) { c.Bind = "127.0.0.1" }, "missing port"},
	} {
		t.Run(row.name, func(t *testing.T) {
			cfg := memberConfig(t, 1)
			row.change(&cfg)
			m, err := mesh.Start(t.Context(), cfg)
			if err == nil {
				closeMember(t, m)
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), row.words) {
				t.Errorf("error %q does not say %q", err, row.words)
			}
		})
	}
}
