package main

import (
	"errors"
	"fmt"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/node"
)

func gcCommand() *cobra.Command {
	var r remote
	var dryRun, yes bool
	keep := ""
	c := &cobra.Command{
		Use:   "gc",
		Short: "Drop what nothing needs any more now, or list it",
		Long: `Drop what nothing needs any more. The mesh does so by itself, all the time and
while it is in use: links to blobs that no manifest has needed for a day, then
bytes that nothing has named or used for a day. This command begins a round at
once; --dry-run lists what would go, and why.

Manifests without a tag are kept, unless --keep-untagged sets after how long
they may go; manifests that an index names, or that refer to one that is there,
stay in any case. Without --yes, --keep-untagged says what it would mean.`,
		RunE: func(c *cobra.Command, _ []string) error {
			var done struct{}
			switch {
			case keep != "" && dryRun:
				return usageError{errors.New("--dry-run and --keep-untagged do not go together")}
			case keep != "":
				return r.keepUntagged(c, keep, yes)
			case dryRun:
				return r.printGarbage(c)
			}
			return r.fetch(c.Context(), http.MethodPost, "/flotilla/v1/gc", &done)
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "list what would go and why, and drop nothing")
	c.Flags().StringVar(&keep, "keep-untagged", "", "from now on, keep manifests without a tag for this long (720h), or forever; mesh-wide")
	c.Flags().BoolVar(&yes, "yes", false, "do it: for --keep-untagged")
	return c
}

// keepUntagged sets how long manifests without a tag are kept. Only to keep
// them for ever does no harm.
func (r *remote) keepUntagged(c *cobra.Command, keep string, yes bool) error {
	d := time.Duration(0)
	if keep != "forever" {
		var err error
		if d, err = time.ParseDuration(keep); err != nil || d < 0 {
			return usageError{fmt.Errorf("--keep-untagged %q: want a duration such as 720h, or forever", keep)}
		}
	}
	if d > 0 && !yes {
		s, err := r.status(c.Context())
		if err != nil {
			return err
		}
		now := "they are kept for ever"
		if s.Cluster.UntaggedAfter > 0 {
			now = "they are kept for " + s.Cluster.UntaggedAfter.String()
		}
		fmt.Fprintf(c.OutOrStdout(), "From now on every repository of the mesh behind %s would lose each manifest that has had no tag for %s,\n"+
			"unless an index names it or it refers to one that is there; those that have had none for so long already\n"+
			"would go at once, and can no longer be pulled by digest. Today %s.\n", r.server, d, now)
		return errNotSaid
	}
	var done struct{}
	return r.fetch(c.Context(), http.MethodPut, "/flotilla/v1/gc/untagged?after="+d.String(), &done)
}

func (r *remote) printGarbage(c *cobra.Command) error {
	var g node.Garbage
	if err := r.fetch(c.Context(), http.MethodGet, "/flotilla/v1/gc", &g); err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tWHERE\tDIGEST\tSIZE\tUNUSED SINCE\tWHY")
	for _, e := range g.Entries {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", e.Kind, e.Where, e.Digest, size(e.Size), e.Since.Format(time.RFC3339), e.Why)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, name := range g.Silent {
		fmt.Fprintf(c.OutOrStdout(), "%s did not answer: what it would drop is not in the list\n", name)
	}
	if g.More {
		fmt.Fprintln(c.OutOrStdout(), "there is more than this list shows")
	}
	return nil
}

// size is n bytes as people read it, -1 those of which nobody said how many.
func size(n int64) string {
	if n < 0 {
		return "-"
	}
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 100<<10:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 10<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
