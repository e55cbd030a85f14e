package node

import (
	"strings"
	"testing"
)

func TestConfigRefusals(t *testing.T) {
	for _, row := range []struct {
		name string
		cfg  Config
		want string // "" is accepted
	}{
		{"nothing said", Config{}, ""},
		{"a name with a space", Config{Name: "a b"}, "--name"},
		{"a name too long", Config{Name: strings.Repeat("a", 64)}, "--name"},
		{"a zone with a slash", Config{Zone: "a/b"}, "--zone"},
		{"a listen address without a port", Config{Listen: "localhost"}, "--listen"},
		{"a port that is a word", Config{PeerListen: ":http-ish"}, "--peer-listen"},
		{"a port beyond the last", Config{GossipListen: ":65536"}, "--gossip-listen"},
		{"a join target without a port", Config{Join: []string{"host"}}, "--join"},
		{"an IPv6 join target", Config{Join: []string{"[::1]:5002"}}, ""},
		{"a certificate without a key", Config{TLSCert: "c.pem"}, "--tls-cert"},
		{"no copies", Config{Replicas: -1}, "--replicas"},
		{"a cache beyond the disk", Config{CacheSize: "101%"}, "--cache-size"},
		{"a cache in words", Config{CacheSize: "much"}, "--cache-size"},
		{"a cache in GiB", Config{CacheSize: "500GiB"}, ""},
		{"a rate of the disk", Config{RepairRate: "10%"}, "--repair-rate"},
		{"a rate at which sources seem silent", Config{RepairRate: "63KiB"}, "--repair-rate"},
		{"a rate of nothing", Config{ScrubRate: "0"}, "--scrub-rate"},
		{"rates in MiB", Config{RepairRate: "10MiB", ScrubRate: "512K"}, ""},
		{"no zone rate", Config{ZoneRate: "0"}, ""},
		{"a low zone rate", Config{ZoneRate: "16KiB"}, ""},
		{"a zone rate in words", Config{ZoneRate: "slow"}, "--zone-rate"},
		{"a zone rate of the disk", Config{ZoneRate: "10%"}, "--zone-rate"},
		{"a zone rate below nothing", Config{ZoneRate: "-1"}, "--zone-rate"},
		{"a zone rate at which copies seem dead", Config{ZoneRate: "15KiB"}, "--zone-rate"},
		{"out at once", Config{OutAfter: 1}, "--out-after"},
		{"unknown tag reads", Config{TagReads: "sometimes"}, "--tag-reads"},
		{"an address with a scheme", Config{Advertise: "http://host"}, "--advertise"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.cfg.Name == "" {
				row.cfg.Name = "node"
			}
			_, err := row.cfg.withDefaults()
			switch {
			case row.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
				t.Errorf("error %v, want one that names %s", err, row.want)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	for _, row := range []struct {
		in   string
		want int64
	}{
		{"80%", 800}, {"0%", 0}, {"100%", 1000}, {"512", 512}, {"2K", 2 << 10}, {"3MiB", 3 << 20}, {"1GB", 1 << 30}, {"1TiB", 1 << 40},
	} {
		if got, err := parseSize(row.in, 1000); err != nil || got != row.want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", row.in, got, err, row.want)
		}
	}
}
