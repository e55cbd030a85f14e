package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/node"
)

func memberPath(name string) string { return "/flotilla/v1/members/" + url.PathEscape(name) }

func drainCommand() *cobra.Command {
	var r remote
	var cancel, detach bool
	c := &cobra.Command{
		Use:   "drain NODE",
		Short: "Have the others take over what a node owns; then it leaves the mesh and stops",
		Long: `Have the others take over what a node owns. It goes on serving meanwhile. When
every blob that it holds has its copies elsewhere, it leaves the mesh and its
process ends. The command shows how far that is and may be interrupted: the
node goes on, and the same command looks again.`,
		Args: oneArgument("node"),
		RunE: func(c *cobra.Command, args []string) error {
			member, asked, err := r.member(c.Context(), args[0])
			if err != nil {
				return err
			}
			method := http.MethodPut
			if cancel {
				method = http.MethodDelete
			}
			var done struct{}
			if err := r.fetch(c.Context(), method, memberPath(member.Name)+"/drain", &done); err != nil {
				return err
			}
			if cancel || detach {
				return nil
			}
			return r.watchDrain(c.Context(), c.OutOrStdout(), member, asked)
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&cancel, "cancel", false, "call it off: the node owns blobs again")
	c.Flags().BoolVar(&detach, "detach", false, "do not wait for the end")
	return c
}

// member finds the member that people call name, and says whether it is the
// node asked.
func (r *remote) member(ctx context.Context, name string) (found node.MemberStatus, asked bool, err error) {
	s, err := r.status(ctx)
	if err != nil {
		return found, false, err
	}
	for _, m := range s.Members {
		if m.Name == name || m.ID == name {
			return m, m.ID == s.Node.ID, nil
		}
	}
	return found, false, fmt.Errorf("the mesh has no member called %s", name)
}

// surely is how many looks in a row must show what may pass: gossip hears of
// the goodbye of a node that leaves before the catalogue has that it left, and a
// node that stops cuts connections before its port is closed.
const surely = 10

// watchDrain returns when the member, whose drain has begun, has left. It may be
// the node asked: then nobody listens there any more.
func (r *remote) watchDrain(ctx context.Context, out io.Writer, member node.MemberStatus, asked bool) error {
	last, down, mute := "", 0, 0
	for {
		s, err := r.status(ctx)
		var network *net.OpError
		switch {
		case ctx.Err() != nil:
			return nil // the node goes on
		case err != nil && asked && errors.As(err, &network) && network.Op == "dial":
			fmt.Fprintf(out, "%s has left the mesh\n", member.Name)
			return nil
		case err != nil:
			if mute++; !asked || mute == surely {
				return fmt.Errorf("%w; ask another node how far %s is", err, member.Name)
			}
		default:
			mute = 0
			i := slices.IndexFunc(s.Members, func(m node.MemberStatus) bool { return m.ID == member.ID })
			if i < 0 {
				fmt.Fprintf(out, "%s has left the mesh\n", member.Name)
				return nil
			}
			m := s.Members[i]
			if down++; m.State != "down" {
				down = 0
			}
			if down == surely {
				return fmt.Errorf("%s is down: it can hand over nothing; flotilla remove lets it go", member.Name)
			}
			if line := fmt.Sprintf("%s: %s", member.Name, m.Standing); down == 0 && line != last {
				fmt.Fprintln(out, line)
				last = line
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func removeCommand() *cobra.Command {
	var r remote
	var yes bool
	c := &cobra.Command{
		Use:   "remove NODE",
		Short: "Bury a node that is gone for good, so that the others make its copies again",
		Args:  oneArgument("node"),
		RunE: func(c *cobra.Command, args []string) error {
			member, _, err := r.member(c.Context(), args[0])
			if err != nil {
				return err
			}
			if !yes {
				fmt.Fprintf(c.OutOrStdout(), "%s (%s) is %s. It would leave the mesh for ever: its id is buried, its data folder is of no more use,\n"+
					"and what only it holds is lost. Its name may be used again. The others make its copies again.\n", member.Name, member.ID, member.State)
				if member.State == "up" {
					fmt.Fprintf(c.OutOrStdout(), "It is up: flotilla drain %s lets it hand over first.\n", member.Name)
				}
				return errNotSaid
			}
			var done struct{}
			if err := r.fetch(c.Context(), http.MethodDelete, memberPath(member.Name), &done); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s was removed; whoever has its disk also has the mesh's secret, and may join with it until you change it\n", member.Name)
			return nil
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	return c
}
