package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/node"
)

func recoverCommand() *cobra.Command {
	var r node.Recovery
	c := &cobra.Command{
		Use:   "recover",
		Short: "Go on after most voters are gone for good",
		Long: `Go on after most voters are gone for good. Stop all nodes that are left, look at
each without --yes, and put the one whose log reaches furthest first in --voters;
then run it with --yes and the same --voters at each of them, and start them
again. What others had agreed on without the first one is lost. Nodes that are
not named never come back into the mesh with what they hold, whatever it is.`,
		RunE: func(c *cobra.Command, _ []string) error {
			r.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			if len(r.Voters) == 0 {
				return usageError{fmt.Errorf("--voters: name the members that stay, the one whose catalogue counts first")}
			}
			done, err := node.Recover(r)
			if err != nil {
				return err
			}
			printRecovered(c.OutOrStdout(), done)
			if !r.Yes {
				return errNotSaid
			}
			return nil
		},
	}
	c.Flags().StringVar(&r.Data, "data", "./flotilla-data", "data folder of this node, which must be stopped")
	c.Flags().StringSliceVar(&r.Voters, "voters", nil, "names of the members that stay, the one whose catalogue counts first")
	c.Flags().BoolVar(&r.Yes, "yes", false, "do it")
	return c
}

func printRecovered(out io.Writer, r node.Recovered) {
	fmt.Fprintf(out, "node       %s\nmesh       %s, epoch %s\nlog        to entry %d of term %d, last written %s\n",
		r.Name, r.Mesh, r.Epoch, r.Index, r.Term, r.Written.UTC().Format(time.RFC3339))
	if r.First {
		fmt.Fprintf(out, "catalogue  counts: what others agreed on without it is lost\n")
	} else {
		fmt.Fprintf(out, "catalogue  set aside %s: this node takes over the first one's\n", r.Aside)
	}
	fmt.Fprintf(out, "stay       %s\nburied     %s\n", names(r.Kept), names(r.Buried))
}

func names(members []string) string {
	if len(members) == 0 {
		return "nobody"
	}
	return strings.Join(members, ", ")
}
