package rig

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// lines is which pairs of nodes cannot reach each other now.
type lines struct {
	mu  sync.Mutex
	cut map[pair]bool
}

// pair is a direction: packets from one node to another.
type pair struct{ from, to *Node }

func (r *Rig) makeLines(ctx context.Context) error {
	var up strings.Builder
	for _, n := range r.nodes {
		fmt.Fprintf(&up, "netns add %s\n", n.Name)
		fmt.Fprintf(&up, "link add %s type veth peer name eth0 netns %s\n", n.line(), n.Name)
		fmt.Fprintf(&up, "addr add 10.77.%d.1/24 dev %s\nlink set %s up\n", n.number, n.line(), n.line())
	}
	if err := command(ctx, up.String(), "ip", "-batch", "-"); err != nil {
		return err
	}
	for _, n := range r.nodes {
		err := command(ctx, fmt.Sprintf("addr add %s/24 dev eth0\nlink set eth0 up\nlink set lo up\nroute add default via 10.77.%d.1\n", n.Host, n.number),
			"ip", "-n", n.Name, "-batch", "-")
		if err != nil {
			return err
		}
	}
	return command(ctx, `table inet faults {
	set cut { type ipv4_addr . ipv4_addr; }
	chain forward { type filter hook forward priority 0; policy accept; ip saddr . ip daddr @cut drop; }
}`, "nft", "-f", "-")
}

func (r *Rig) removeLines(ctx context.Context) error {
	var errs []error
	for _, n := range r.nodes {
		// A namespace lets go of its end some time after it is gone.
		errs = append(errs, command(ctx, "", "ip", "link", "del", n.line()), command(ctx, "", "ip", "netns", "del", n.Name))
	}
	return errors.Join(append(errs, command(ctx, "", "nft", "delete", "table", "inet", "faults"))...)
}

func (n *Node) line() string { return fmt.Sprint("line", n.number) }

// Cut drops, from now on, all packets from one group of nodes to the other and
// back. It happens to all of them at once.
func (r *Rig) Cut(ctx context.Context, a, b []*Node) error {
	return r.change(ctx, func(cut map[pair]bool) {
		for _, x := range a {
			for _, y := range b {
				cut[pair{x, y}], cut[pair{y, x}] = true, true
			}
		}
	})
}

// CutOneWay drops the packets from one node to another; those back pass.
func (r *Rig) CutOneWay(ctx context.Context, from, to *Node) error {
	return r.change(ctx, func(cut map[pair]bool) { cut[pair{from, to}] = true })
}

// Mend ends all cuts.
func (r *Rig) Mend(ctx context.Context) error {
	return r.change(ctx, func(cut map[pair]bool) { clear(cut) })
}

func (r *Rig) change(ctx context.Context, f func(map[pair]bool)) error {
	r.lines.mu.Lock()
	defer r.lines.mu.Unlock()
	if r.lines.cut == nil {
		r.lines.cut = map[pair]bool{}
	}
	f(r.lines.cut)
	var elements []string
	for p := range r.lines.cut {
		if p.from != p.to {
			elements = append(elements, p.from.Host+" . "+p.to.Host)
		}
	}
	script := "flush set inet faults cut\n" // one transaction with what follows
	if len(elements) > 0 {
		script += "add element inet faults cut { " + strings.Join(elements, ", ") + " }\n"
	}
	return command(ctx, script, "nft", "-f", "-")
}

// Slow lets the node's line pass so many kbit/s, both ways.
func (n *Node) Slow(ctx context.Context, kbit int) error {
	shape := []string{"qdisc", "replace", "dev", n.line(), "root", "tbf", "rate", fmt.Sprint(kbit, "kbit"), "burst", "16kb", "latency", "500ms"}
	if err := command(ctx, "", "tc", shape...); err != nil {
		return err
	}
	shape[3] = "eth0"
	return command(ctx, "", "tc", append([]string{"-n", n.Name}, shape...)...)
}

// Fast ends Slow.
func (n *Node) Fast(ctx context.Context) error {
	return errors.Join(
		command(ctx, "", "tc", "qdisc", "del", "dev", n.line(), "root"),
		command(ctx, "", "tc", "-n", n.Name, "qdisc", "del", "dev", "eth0", "root"))
}
