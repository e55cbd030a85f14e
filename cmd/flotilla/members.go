package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
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
			member, err := r.member(c.Context(), args[0])
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
			return r.watchDrain(c.Context(), c.OutOrStdout(), member)
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&cancel, "cancel", false, "call it off: the node owns blobs again")
	c.Flags().BoolVar(&detach, "detach", false, "do not wait for the end")
	return c
}

// member finds the member that people call name.
func (r *remote) member(ctx context.Context, name string) (node.MemberStatus, error) {
	s, err := r.status(ctx)
	if err != nil {
		return node.MemberStatus{}, err
	}
	for _, m := range s.Members {
		if m.Name == name || m.ID == name {
			return m, nil
		}
	}
	return node.MemberStatus{}, fmt.Errorf("the mesh has no member called %s", name)
}

// watchDrain returns when the member has left. The node that is asked may be
// the one that leaves: then it stops answering.
func (r *remote) watchDrain(ctx context.Context, out io.Writer, member node.MemberStatus) error {
	last := ""
	for {
		s, err := r.status(ctx)
		switch {
		case ctx.Err() != nil:
			return nil // the node goes on
		case err != nil:
			return fmt.Errorf("%w; ask another node how far %s is", err, member.Name)
		}
		line := ""
		for _, m := range s.Members {
			switch {
			case m.ID != member.ID:
			case m.State == "down":
				line = member.Name + " is down: it can hand over nothing; flotilla remove lets it go"
			default:
				line = fmt.Sprintf("%s: %s", member.Name, m.Standing)
			}
		}
		if line == "" {
			fmt.Fprintf(out, "%s has left the mesh\n", member.Name)
			return nil
		}
		if line != last {
			fmt.Fprintln(out, line)
			last = line
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
			member, err := r.member(c.Context(), args[0])
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
			fmt.Fprintf(c.OutOrStdout(), "%s was removed; whoever has its disk also has the mesh's secret\n", member.Name)
			return nil
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	return c
}
