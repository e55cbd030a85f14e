package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
)

// Config is what a mesh is made of.
type Config struct {
	Binary   string   // flotilla
	Dir      string   // for disks and logs; exists
	Nodes    int      // at most 200
	DiskSize int64    // of each node's file system
	Flags    []string // for the founder, node 1
	// Apart gives Raft a file system of its own, so that its syncs do not make
	// durable what the blobs' folder forgot to sync.
	Apart bool
	// Zone names the zone of each node, the first being 1; nil leaves all in one.
	Zone func(number int) string
}

// Rig is one mesh, its lines and its disks. Methods may be called at once for
// different nodes, and those of the lines at any time.
type Rig struct {
	cfg   Config
	disks bool // each node's folder is on a disk of its own
	nodes []*Node
	lines lines
}

// New makes lines and disks; no node runs yet. Close takes all back.
func New(ctx context.Context, cfg Config) (*Rig, error) {
	_, none := Lacks()[Disks]
	r := &Rig{cfg: cfg, disks: !none}
	for i := 1; i <= cfg.Nodes; i++ {
		zone := ""
		if cfg.Zone != nil {
			zone = cfg.Zone(i)
		}
		r.nodes = append(r.nodes, &Node{
			Name: fmt.Sprint("n", i), Zone: zone, Host: fmt.Sprintf("10.77.%d.2", i), number: i, rig: r, binary: cfg.Binary,
			data: filepath.Join(cfg.Dir, fmt.Sprint("n", i)), image: filepath.Join(cfg.Dir, fmt.Sprintf("n%d.img", i)),
		})
	}
	err := r.makeLines(ctx)
	for _, n := range r.nodes {
		if err == nil {
			err = n.format(ctx)
		}
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Nodes are all nodes that there is room for, whether they run or not.
func (r *Rig) Nodes() []*Node { return r.nodes }

// Close kills what runs and removes lines and disks.
func (r *Rig) Close() error {
	ctx := context.Background()
	var all sync.WaitGroup
	errs := make([]error, len(r.nodes))
	for i, n := range r.nodes {
		all.Go(func() {
			n.Kill()
			errs[i] = n.unformat(ctx)
		})
	}
	all.Wait()
	return errors.Join(append(errs, r.removeLines(ctx))...)
}

// Lacks says which of the machine's means are missing, by what they are for.
func Lacks() map[string]string {
	lacks := map[string]string{}
	for what, tools := range map[string][]string{
		Lines: {"ip", "nsenter", "nft"}, Shaping: {"tc"}, Disks: {"mkfs.ext4", "mount", "umount", "losetup"}, Tracing: {"strace"},
	} {
		for _, tool := range tools {
			if _, err := exec.LookPath(tool); err != nil {
				lacks[what] = tool + " is missing"
			}
		}
	}
	if _, missing := lacks[Disks]; !missing && !mayMount() {
		lacks[Disks] = "only root can mount a disk of its own"
	}
	if why := clockLacks(); why != "" {
		lacks[Clocks] = why
	}
	return lacks
}

// What Lacks tells about.
const (
	Lines   = "lines between nodes"
	Shaping = "slow lines"
	Disks   = "disks of their own"
	Tracing = "failing system calls"
	Clocks  = "clocks of their own"
)

// command runs a tool of the system; what it complains of becomes the error.
func command(ctx context.Context, stdin, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return nil
}
