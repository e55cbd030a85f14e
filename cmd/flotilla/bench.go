package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/cmd/flotilla/bench"
)

func benchCommand() *cobra.Command {
	var o bench.Options
	var about strings.Builder
	for _, w := range bench.Workloads() {
		fmt.Fprintf(&about, "\n  %-18s %s", w.Name, w.About)
	}
	c := &cobra.Command{
		Use:   "bench [NAME=]URL[,URL...]...",
		Short: "Measure any OCI registry, or several against each other",
		Long: `Measure any OCI registry. Several are measured in turn within each round, so
that whatever else the machine does hits all alike; the table shows medians
and, for each pair, the median of the ratios within a round to the first.
Several URLs of one registry, with commas between, share its load. What was
pushed is deleted again where the registry lets it.

Workloads:` + about.String(),
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, targets []string) error {
			o.Targets, o.Progress = targets, os.Stderr
			if err := o.Check(); err != nil {
				return usageError{err}
			}
			return bench.Run(c.Context(), o, c.OutOrStdout())
		},
	}
	f, d := c.Flags(), bench.Defaults()
	f.StringSliceVar(&o.Workloads, "workloads", nil, "which to measure (default all)")
	f.StringArrayVar(&o.PIDs, "pid", nil, "process ids of the server, in the order of the URLs: shows its CPU and memory (Linux)")
	f.BoolVar(&o.Quick, "quick", false, "small sizes: shows that all works, and little else")
	f.BoolVar(&o.JSON, "json", false, "print the report as JSON")
	f.BoolVar(&o.InsecureTLS, "insecure-tls", false, "accept any certificate")
	f.IntVar(&o.Rounds, "rounds", 0, fmt.Sprintf("measured rounds of each workload (default %d)", d.Rounds))
	f.IntVar(&o.Workers, "workers", 0, fmt.Sprintf("clients at once, where a workload has several (default %d)", d.Workers))
	f.DurationVar(&o.Duration, "duration", 0, fmt.Sprintf("length of a round where requests are counted (default %s)", d.Duration))
	f.Var(&o.Size, "size", fmt.Sprintf("blob of the monolithic, chunked and whole workloads (default %s)", d.Size))
	f.Var(&o.Chunk, "chunk", fmt.Sprintf("one PATCH of a chunked push (default %s)", d.Chunk))
	f.IntVar(&o.Parts, "parts", 0, fmt.Sprintf("blobs of the parallel workloads (default %d)", d.Parts))
	f.Var(&o.PartSize, "part-size", fmt.Sprintf("one of these (default %s)", d.PartSize))
	f.IntVar(&o.Tags, "tags", 0, fmt.Sprintf("tags of the repository with many (default %d)", d.Tags))
	f.IntVar(&o.Layers, "layers", 0, fmt.Sprintf("layers of the image (default %d)", d.Layers))
	f.Var(&o.LayerSize, "layer-size", fmt.Sprintf("one of these (default %s)", d.LayerSize))
	for _, name := range []string{"size", "chunk", "part-size", "layer-size"} {
		f.Lookup(name).DefValue = "" // the text says it; the zero of a Size means the default
	}
	return c
}
