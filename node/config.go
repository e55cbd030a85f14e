package node

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flotilla-registry/flotilla/metadata"
)

// Config is everything that an operator can say to a node. The zero value of
// a field means its default unless said otherwise.
type Config struct {
	Name         string        // what people call the node; default the host name
	Data         string        // everything durable; default ./flotilla-data
	Listen       string        // public port; default :5000
	TLSCert      string        // PEM file for the public port; with TLSKey, or neither
	TLSKey       string        // PEM file
	TLSClientCA  string        // PEM file of the authorities of clients' certificates; "" takes none
	PublicURL    string        // scheme and host that clients use, where a proxy changes them
	Htpasswd     string        // file of accounts at this node, bcrypt only; "" is none
	AuditLog     string        // file for a line about each change and each refusal, - for standard output; "" is none
	AuditPulls   bool          // about reads too
	PeerListen   string        // Raft and blobs between nodes; default :5001
	GossipListen string        // memberlist, UDP and TCP; default :5002
	Advertise    string        // host that others reach this node at; default the local address of the route to Join
	Join         []string      // gossip addresses of any members
	Expect       []string      // names of the first nodes, for orchestrators
	Zone         string        // site or datacenter; default "default"
	Weight       int64         // GiB, share of the blobs it owns; 0 owns none; OfDisk: GiB of the data disk
	Replicas     int           // copies of each blob; default 3; the founder's counts
	SecretFile   string        // one secret or two, see readSecrets; default <Data>/mesh.secret
	CacheSize    string        // ceiling for copies that the node need not hold: bytes with a unit, or a percentage of the disk; default 80%
	RepairRate   string        // bytes a second for copies that this node makes by itself; default 64MiB
	ZoneRate     string        // bytes a second that all nodes of the zone together take from each other zone; 0, the default, is no limit
	ScrubRate    string        // bytes a second at which stored blobs are read again; default 8MiB
	OutAfter     time.Duration // how long a member may be gone before others make its copies; the leader's counts; default 15 min
	TagReads     string        // linearizable, strict or local; default linearizable
	AllowSparse  bool          // images may be pushed before their blobs; the founder's counts

	Version string       // shown by status
	Log     *slog.Logger // default discards

	// Quick shortens what waits for silence (elections, suspicion,
	// stabilisation) to fit nodes that share a machine, as in `flotilla dev`
	// and tests. Never use it across machines.
	Quick bool
	// Unused is how long what nothing names stays; default a day. It is for
	// tests: whoever pushes must be done in less.
	Unused time.Duration
	// Drain bounds how long a stop waits for requests under way; default 30 s.
	Drain time.Duration
}

// OfDisk is the Weight of a node that owns blobs by the size of its data disk.
const OfDisk = -1

// defaultZone is the one of nodes that were told of none.
const defaultZone = "default"

var nameRule = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)

// withDefaults fills what was not said and refuses what cannot work, with one
// line that names the flag.
func (c Config) withDefaults() (Config, error) {
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return c, fmt.Errorf("--name: the host has no name: %w", err)
		}
		c.Name = strings.ToLower(host)
	}
	c.Data = or(c.Data, "flotilla-data")
	c.Listen = or(c.Listen, ":5000")
	c.PeerListen = or(c.PeerListen, ":5001")
	c.GossipListen = or(c.GossipListen, ":5002")
	c.Zone = or(c.Zone, defaultZone)
	c.SecretFile = or(c.SecretFile, filepath.Join(c.Data, "mesh.secret"))
	c.CacheSize = or(c.CacheSize, "80%")
	c.RepairRate = or(c.RepairRate, "64MiB")
	c.ZoneRate = or(c.ZoneRate, "0")
	c.ScrubRate = or(c.ScrubRate, "8MiB")
	if c.OutAfter == 0 {
		c.OutAfter = 15 * time.Minute
	}
	c.TagReads = or(c.TagReads, string(metadata.Linearizable))
	if c.Replicas == 0 {
		c.Replicas = 3
	}
	if c.Drain == 0 {
		c.Drain = 30 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, c.check()
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (c Config) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !nameRule.MatchString(c.Name) {
		bad("--name %q: use letters, digits, dots, dashes and underscores, at most 63", c.Name)
	}
	if !nameRule.MatchString(c.Zone) {
		bad("--zone %q: use letters, digits, dots, dashes and underscores, at most 63", c.Zone)
	}
	for _, l := range []struct{ flag, addr string }{{"listen", c.Listen}, {"peer-listen", c.PeerListen}, {"gossip-listen", c.GossipListen}} {
		if _, port, err := net.SplitHostPort(l.addr); err != nil {
			bad("--%s %q: want HOST:PORT or :PORT", l.flag, l.addr)
		} else if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
			bad("--%s %q: the port is not a number from 0 to 65535", l.flag, l.addr)
		}
	}
	for _, a := range c.Join {
		if _, _, err := net.SplitHostPort(a); err != nil {
			bad("--join %q: want HOST:PORT, the gossip port (5002) of any member", a)
		}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		bad("--tls-cert and --tls-key go together")
	}
	if c.TLSClientCA != "" && c.TLSCert == "" {
		bad("--tls-client-ca needs --tls-cert and --tls-key: only TLS shows certificates")
	}
	if c.AuditPulls && c.AuditLog == "" {
		bad("--audit-pulls needs --audit-log")
	}
	if c.Weight < OfDisk || c.Weight > 1<<31 {
		bad("--weight %d: want GiB, at least 0", c.Weight)
	}
	if c.Replicas < 1 || c.Replicas > 15 {
		bad("--replicas %d: want 1 to 15", c.Replicas)
	}
	if _, err := parseSize(c.CacheSize, 100); err != nil {
		bad("--cache-size: %w", err)
	}
	for _, rate := range []struct{ flag, size string }{{"repair-rate", c.RepairRate}, {"scrub-rate", c.ScrubRate}} {
		if n, err := parseSize(rate.size, 0); err != nil || n == 0 {
			bad("--%s %q: want bytes a second, such as 64MiB", rate.flag, rate.size)
		}
	}
	// Slower, and the pieces come so far apart that a source seems silent.
	if n, err := parseSize(c.RepairRate, 0); err == nil && n > 0 && n < 64<<10 {
		bad("--repair-rate %q: want at least 64KiB a second", c.RepairRate)
	}
	// Slower, and what is passed on in pieces looks dead to whoever follows it.
	if n, err := parseSize(c.ZoneRate, 0); err != nil || n > 0 && n < 16<<10 {
		bad("--zone-rate %q: want bytes a second, such as 2MiB, at least 16KiB; or 0 for no limit", c.ZoneRate)
	}
	if c.OutAfter < time.Second {
		bad("--out-after %s: want at least a second", c.OutAfter)
	}
	modes := []metadata.TagReads{metadata.Linearizable, metadata.Strict, metadata.Local}
	if !slices.Contains(modes, metadata.TagReads(c.TagReads)) {
		bad("--tag-reads %q: want linearizable, strict or local", c.TagReads)
	}
	if strings.Contains(c.Advertise, "/") {
		bad("--advertise %q: want a host name or an address, without a port", c.Advertise)
	}
	if len(c.Expect) > 0 && !slices.Contains(c.Expect, c.Name) && len(c.Join) == 0 {
		bad("--expect does not name this node (%s): add --join to enter the mesh that they make", c.Name)
	}
	return errors.Join(errs...)
}

var sizeRule = regexp.MustCompile(`^([0-9]+)(%|[KMGT]i?B?)?$`)

// parseSize returns how many bytes s means on a disk of this size; without a
// disk a percentage means nothing.
func parseSize(s string, disk uint64) (int64, error) {
	m := sizeRule.FindStringSubmatch(s)
	if m == nil || m[2] == "%" && disk == 0 {
		return 0, fmt.Errorf("%q: want bytes (500GiB) or a percentage of the disk (80%%)", s)
	}
	n, err := strconv.ParseUint(m[1], 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%q: too large", s)
	}
	if m[2] == "%" {
		if n > 100 {
			return 0, fmt.Errorf("%q: more than the whole disk", s)
		}
		return int64(disk / 100 * n), nil
	}
	if m[2] == "" {
		return int64(n), nil
	}
	shift := 10 * (1 + strings.Index("KMGT", m[2][:1]))
	if n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q: too large", s)
	}
	return int64(n << shift), nil
}
