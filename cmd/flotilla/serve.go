package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/flotilla-registry/flotilla/node"
)

func serveCommand() *cobra.Command {
	var cfg node.Config
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run a node",
		Long: `Run a node. With an empty data folder and neither --join nor --expect it founds
a mesh of one, which takes writes within a second. With --join it enters the
mesh of any member named there, and needs that mesh's secret.

Each flag may also be given in the environment: --peer-listen is
FLOTILLA_PEER_LISTEN. The command line wins.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if cfg.Replicas < 1 { // 0 is node.Config's way to say nothing
				return usageError{fmt.Errorf("--replicas %d: want 1 to 15", cfg.Replicas)}
			}
			cfg.Version = version()
			cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
			spareCollector()
			err := node.Run(c.Context(), cfg)
			if errors.Is(err, node.ErrConfig) {
				return usageError{err}
			}
			return err
		},
	}
	serveFlags(c.Flags(), &cfg)
	c.PreRunE = func(c *cobra.Command, _ []string) error { return fromEnvironment(c.Flags(), nil) }
	return c
}

// spareCollector lets the heap grow to three times what is in use before it is
// collected, not twice. A node uses a few MiB of it, which at Go's default is
// collected some 30 times a second while clients ask for manifests; half as
// often saves an eighth of the CPU of such requests. GOGC in the environment wins.
func spareCollector() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(200)
	}
}

// serveFlags declares every setting of a node, with the defaults in the
// help; node.Config fills them in.
func serveFlags(f *pflag.FlagSet, cfg *node.Config) {
	f.StringVar(&cfg.Name, "name", "", "what people call the node (default the host name)")
	f.StringVar(&cfg.Data, "data", "./flotilla-data", "folder for everything durable")
	f.StringVar(&cfg.Listen, "listen", ":5000", "public port: /v2/, /metrics, /healthz, /readyz, /flotilla/v1/")
	f.StringVar(&cfg.TLSCert, "tls-cert", "", "certificate file for the public port; read again when it changes")
	f.StringVar(&cfg.TLSKey, "tls-key", "", "key file for the public port")
	f.StringVar(&cfg.TLSClientCA, "tls-client-ca", "", "PEM file: whoever shows a certificate of these authorities is the account that its common name says")
	f.StringVar(&cfg.PublicURL, "public-url", "", "how clients reach the registry, such as https://registry.example, where a proxy stands before it")
	f.StringVar(&cfg.Htpasswd, "htpasswd", "", "file of accounts at this node, bcrypt only, beside those of the mesh")
	f.StringVar(&cfg.AuditLog, "audit-log", "", "file for a JSON line about each change and each refusal; - for standard output")
	f.BoolVar(&cfg.AuditPulls, "audit-pulls", false, "lines about pulls and lists too")
	f.StringVar(&cfg.PeerListen, "peer-listen", ":5001", "Raft and blobs between nodes, mutual TLS")
	f.StringVar(&cfg.GossipListen, "gossip-listen", ":5002", "memberlist, UDP and TCP")
	f.StringVar(&cfg.Advertise, "advertise", "", "host that others reach this node at (default the local address of the route to the join target)")
	f.StringSliceVar(&cfg.Join, "join", nil, "gossip addresses of any members; DNS names may have several records; retried for ever")
	f.StringSliceVar(&cfg.Expect, "expect", nil, "names of the first nodes, for orchestrators: a mesh of theirs is joined, else the lowest name founds")
	f.StringVar(&cfg.Zone, "zone", "default", "site or datacenter")
	f.StringVar(&cfg.ZoneRate, "zone-rate", "0", "bytes a second that all nodes of the zone together take from each other zone, such as 2MiB, at least 16KiB; 0 is no limit")
	f.Int64Var(&cfg.Weight, "weight", node.OfDisk, "share of the blobs it owns, in GiB; 0 owns none (default GiB of the data disk)")
	f.IntVar(&cfg.Replicas, "replicas", 3, "copies of each blob, mesh-wide; the founder's counts")
	f.StringVar(&cfg.SecretFile, "secret-file", "", "the join secret, base64 of at least 32 random bytes; a second line is accepted too (default <data>/mesh.secret, made by the founder)")
	f.StringVar(&cfg.CacheSize, "cache-size", "80%", "ceiling for copies that the node need not hold")
	f.StringVar(&cfg.RepairRate, "repair-rate", "64MiB", "bytes a second for copies that the node makes by itself")
	f.StringVar(&cfg.ScrubRate, "scrub-rate", "8MiB", "bytes a second at which stored blobs are read again, to find damaged ones")
	f.DurationVar(&cfg.OutAfter, "out-after", 15*time.Minute, "how long a member may be gone before others make its copies; the leader's counts")
	f.StringVar(&cfg.TagReads, "tag-reads", "linearizable", "linearizable, strict (503 rather than a degraded answer) or local (at once, as old as this replica)")
	f.BoolVar(&cfg.AllowSparse, "allow-sparse", false, "images may be pushed before their blobs, mesh-wide; the founder's counts")
	f.Lookup("weight").DefValue = "0" // which the help leaves out: the text says what it is
}

// fromEnvironment sets each flag (of names, unless that is nil) that the command
// line left alone from its FLOTILLA_ variable. Variables that name no flag are left alone: Kubernetes
// makes some for a service that is called flotilla.
func fromEnvironment(f *pflag.FlagSet, names []string) error {
	var errs []error
	f.VisitAll(func(flag *pflag.Flag) {
		name := environmentName(flag.Name)
		value, set := os.LookupEnv(name)
		if !set || flag.Changed || names != nil && !slices.Contains(names, flag.Name) {
			return
		}
		if err := f.Set(flag.Name, value); err != nil {
			errs = append(errs, usageError{fmt.Errorf("%s: %w", name, err)})
		}
	})
	return errors.Join(errs...)
}

func environmentName(flag string) string {
	return "FLOTILLA_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}
