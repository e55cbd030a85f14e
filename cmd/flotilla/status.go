package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/node"
)

func statusCommand() *cobra.Command {
	var r remote
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show members, zones, leader and health of the mesh, as one node sees them",
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := r.status(c.Context())
			if err != nil {
				return err
			}
			return show(c, asJSON, s, printStatus)
		},
	}
	r.flags(c)
	jsonFlag(c, &asJSON)
	return c
}

func printStatus(out io.Writer, s node.Status) error {
	mesh := s.Cluster.ID
	if mesh == "" {
		mesh = "none yet"
	}
	fmt.Fprintf(out, "mesh     %s\nnode     %s (%s), zone %s, flotilla %s\nhealth   %s\n", mesh, s.Node.Name, s.Node.ID, s.Node.Zone, s.Node.Version, s.Health)
	for _, note := range s.Notes {
		fmt.Fprintf(out, "         %s\n", note)
	}
	fmt.Fprintf(out, "copies   %d of each blob\ndisk     %s free of %s\n\n", s.Cluster.Replicas, gib(s.Disk.Free), gib(s.Disk.Total))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tZONE\tROLE\tSTATE\tWEIGHT\tADDRESS\tID")
	for _, m := range s.Members {
		state := m.State
		if m.Standing != "in" {
			state += ", " + m.Standing
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d GiB\t%s\t%s\n", m.Name, m.Zone, m.Role, state, m.Weight, m.Address, m.ID)
	}
	if len(s.Zones) > 0 {
		if err := w.Flush(); err != nil { // a table of its own
			return err
		}
		fmt.Fprintln(w, "\nFROM\tTO\tPULL\tPUSH\tREPAIR\tREBALANCE")
	}
	for _, z := range s.Zones {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", z.From, z.To, size(z.Pull), size(z.Push), size(z.Repair), size(z.Rebalance))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return printTransfers(out, s)
}

// printTransfers says who takes what from whom.
func printTransfers(out io.Writer, s node.Status) error {
	if len(s.Transfers) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BLOB\tFROM\tTO\tDONE\tSIZE\tFOR")
	for _, t := range s.Transfers {
		reason := "a client"
		if t.Repair {
			reason = "repair"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", short(t.Digest), placed(t.From), placed(t.To), size(t.Received), size(t.Size), reason)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if more := s.TransfersTotal - len(s.Transfers); more > 0 {
		fmt.Fprintf(out, "and %d more\n", more)
	}
	return nil
}

// placed is a node with its zone.
func placed(n node.NodeName) string {
	if n.Zone == "" {
		return n.Name
	}
	return n.Name + " (" + n.Zone + ")"
}

func gib(n uint64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }
