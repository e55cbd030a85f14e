package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/node"
)

// devMesh is what `flotilla dev` was asked for.
type devMesh struct {
	nodes  int
	data   string
	listen string
}

func devCommand() *cobra.Command {
	var d devMesh
	c := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole mesh in one process on loopback, to try things out",
		RunE:  func(c *cobra.Command, _ []string) error { return d.run(c.Context(), c.OutOrStdout()) },
	}
	c.Flags().IntVar(&d.nodes, "nodes", 3, "how many nodes")
	c.Flags().StringVar(&d.data, "data", "", "folder to keep the nodes' data in (default a temporary one, removed at the end)")
	c.Flags().StringVar(&d.listen, "listen", "127.0.0.1:5000", "public port of the first node; node i has this port plus 10 x (i-1)")
	return c
}

// run starts the nodes one after the other, tells the newcomer what to try,
// and stops them in reverse when ctx ends.
func (d devMesh) run(ctx context.Context, out io.Writer) error {
	if d.nodes < 1 || d.nodes > 9 {
		return usageError{fmt.Errorf("--nodes %d: want 1 to 9", d.nodes)}
	}
	if d.data == "" {
		dir, err := os.MkdirTemp("", "flotilla-dev-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		d.data = dir
	}
	var started []*node.Node
	defer func() {
		for i := len(started) - 1; i >= 0; i-- {
			started[i].Stop()
		}
	}()
	for i := range d.nodes {
		cfg, err := d.config(i, started)
		if err != nil {
			return err
		}
		n, err := node.Start(ctx, cfg)
		if err != nil {
			return fmt.Errorf("node%d: %w", i+1, err)
		}
		started = append(started, n)
		if err := n.AwaitReady(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("node%d: %w", i+1, err)
		}
	}
	d.welcome(out, started)
	return waitAll(ctx, out, started)
}

// config is node i's: ports of its own, the first node's secret, and the first
// node as the one to join.
func (d devMesh) config(i int, started []*node.Node) (node.Config, error) {
	host, port, err := net.SplitHostPort(d.listen)
	if err != nil {
		return node.Config{}, usageError{fmt.Errorf("--listen %q: want HOST:PORT", d.listen)}
	}
	first, err := strconv.Atoi(port)
	if err != nil || first < 1 || first+10*d.nodes > 65535 {
		return node.Config{}, usageError{fmt.Errorf("--listen %q: the port is out of range", d.listen)}
	}
	name := fmt.Sprintf("node%d", i+1)
	cfg := node.Config{
		Name:         name,
		Data:         filepath.Join(d.data, name),
		Listen:       net.JoinHostPort(host, strconv.Itoa(first+10*i)),
		PeerListen:   "127.0.0.1:0",
		GossipListen: "127.0.0.1:0",
		Weight:       1,
		Quick:        true,
		Drain:        time.Second,
		Version:      version(),
		Log:          slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})).With("node", name),
	}
	if len(started) > 0 {
		cfg.Join = []string{started[0].GossipAddr()}
		cfg.SecretFile = filepath.Join(d.data, "node1", "mesh.secret")
	}
	return cfg, nil
}

// waitAll returns when ctx ends, or when no node is left. A node that ends by
// itself, since it was drained for one, leaves the others alone.
func waitAll(ctx context.Context, out io.Writer, nodes []*node.Node) error {
	type end struct {
		node string
		err  error
	}
	ended := make(chan end, len(nodes))
	for i, n := range nodes {
		go func() { ended <- end{fmt.Sprintf("node%d", i+1), n.Wait(ctx)} }()
	}
	var errs []error
	for range nodes {
		e := <-ended
		switch {
		case ctx.Err() != nil:
		case e.err != nil:
			fmt.Fprintf(out, "%s ended: %v\n", e.node, e.err)
			errs = append(errs, fmt.Errorf("%s: %w", e.node, e.err))
		default:
			fmt.Fprintf(out, "%s has left the mesh\n", e.node)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(errs...)
}

func (d devMesh) welcome(out io.Writer, nodes []*node.Node) {
	fmt.Fprintf(out, "\nA mesh of %d nodes is up. Push through one, pull through any other:\n\n", len(nodes))
	for i, n := range nodes {
		fmt.Fprintf(out, "  node%d  http://%s/v2/\n", i+1, n.Addr())
	}
	a, b := nodes[0].Addr(), nodes[len(nodes)-1].Addr()
	fmt.Fprintf(out, `
  docker tag alpine %[1]s/alpine && docker push %[1]s/alpine && docker pull %[2]s/alpine
  skopeo copy --dest-tls-verify=false docker-archive:image.tar docker://%[1]s/image:v1
  skopeo inspect --tls-verify=false docker://%[2]s/image:v1
  crane copy alpine %[1]s/alpine && crane digest %[2]s/alpine

  %[4]s status --server http://%[2]s

Data in %[3]s. Ctrl-C ends it.
`, a, b, d.data, os.Args[0])
}
