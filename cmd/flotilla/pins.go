package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/node"
)

const pinsPath = "/flotilla/v1/pins"

func pinCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "pin",
		Short: "What a zone (site or datacenter) is to hold always",
		Long: `What a zone (site or datacenter) is to hold always, whoever pulls it or not. One
node of the zone fetches each blob of a pinned image as soon as the image is
pushed, at the pace of repairs (--repair-rate), and never drops it; when that
node is drained, removed or gone for long, another one of the zone takes over.
What is pinned no more is an ordinary copy, and goes when room is needed.

An image comes with its config and layers, for an index with all of its images,
and with what refers to any of these, such as signatures. Pins are the same on
every node, and a zone may be pinned for before its first node is there.`,
		Args: noArguments,
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	c.AddCommand(pinAddCommand(), pinListCommand(), pinRemoveCommand(), pinStatusCommand())
	return c
}

// pinChangeCommand is what adding a pin and taking it back have in common. send
// has the mesh do it.
func pinChangeCommand(verb, short string, send func(ctx context.Context, r *remote, p node.Pin, done *node.PinChange) error) *cobra.Command {
	var r remote
	var p node.Pin
	c := &cobra.Command{
		Use:   verb + " --zone ZONE --repo PATTERN [--tag PATTERN]",
		Short: short,
		Args:  noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if p.Zone == "" || p.Repo == "" {
				return usageError{errors.New("say --zone and --repo")}
			}
			var done node.PinChange
			if err := send(c.Context(), &r, p, &done); err != nil {
				return err
			}
			for _, warning := range done.Warnings {
				fmt.Fprintln(c.ErrOrStderr(), "warning:", warning)
			}
			return behind(done.Everywhere)
		},
	}
	r.flags(c)
	c.Flags().StringVar(&p.Zone, "zone", "", "the zone that holds it")
	c.Flags().StringVar(&p.Repo, "repo", "", "pattern of repositories: * is within a path component, ** any number of components")
	c.Flags().StringVar(&p.Tag, "tag", "", "pattern of tags, in which * is any characters: what has such a tag now (default everything, with a tag or without)")
	return c
}

func pinAddCommand() *cobra.Command {
	c := pinChangeCommand("add", "Have a zone hold images always", func(ctx context.Context, r *remote, p node.Pin, done *node.PinChange) error {
		return r.send(ctx, http.MethodPost, pinsPath, p, done)
	})
	c.Example = `  flotilla pin add --zone ship --repo 'base/**'
  flotilla pin add --zone shop-7 --repo pos/terminal --tag 'v2.*'`
	return c
}

func pinRemoveCommand() *cobra.Command {
	return pinChangeCommand("remove", "Take a pin back, said as it was added", func(ctx context.Context, r *remote, p node.Pin, done *node.PinChange) error {
		query := url.Values{"zone": {p.Zone}, "repo": {p.Repo}, "tag": {p.Tag}}
		return r.fetch(ctx, http.MethodDelete, pinsPath+"?"+query.Encode(), done)
	})
}

// pinList is what a node answers to who asks for the pins.
type pinList struct {
	Pins []node.Pin `json:"pins"`
}

func pinListCommand() *cobra.Command {
	var r remote
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the pins",
		Args:  noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			var list pinList
			if err := r.fetch(c.Context(), http.MethodGet, pinsPath, &list); err != nil {
				return err
			}
			return show(c, asJSON, list, printPins)
		},
	}
	r.flags(c)
	jsonFlag(c, &asJSON)
	return c
}

func printPins(out io.Writer, list pinList) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ZONE\tREPOSITORIES\tTAGS")
	for _, p := range list.Pins {
		fmt.Fprintf(w, "%s\t%s\t%s\n", p.Zone, p.Repo, cmp.Or(p.Tag, "-"))
	}
	return w.Flush()
}

func pinStatusCommand() *cobra.Command {
	var r remote
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show whether the zones hold what they pin, and what is missing",
		Long: `Show whether the zones hold what they pin: of each pin the images, the blobs and
their size, how much of that is missing in the zone, and how long it takes at
the pace of the nodes that are to fetch it. The command fails (exit code 1)
unless every pin holds.`,
		Args: noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			var s node.PinsStatus
			if err := r.look(c.Context(), pinsPath+"/status", &s); err != nil {
				return err
			}
			if err := show(c, asJSON, s, printPinsStatus); err != nil {
				return err
			}
			return allHold(s)
		},
	}
	r.flags(c)
	jsonFlag(c, &asJSON)
	return c
}

// allHold is nil where every pin holds.
func allHold(s node.PinsStatus) error {
	broken := 0
	for _, p := range s.Pins {
		if !p.Holds {
			broken++
		}
	}
	if broken > 0 {
		return fmt.Errorf("%d of %d pins do not hold", broken, len(s.Pins))
	}
	return nil
}

func printPinsStatus(out io.Writer, s node.PinsStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ZONE\tREPOSITORIES\tTAGS\tHOLDS\tIMAGES\tBLOBS\tSIZE\tMISSING\tTO GO")
	for _, p := range s.Pins {
		holds, missing, wait := "yes", "-", "-"
		if !p.Holds {
			holds = "no"
		}
		if p.MissingBlobs > 0 {
			missing, wait = fmt.Sprintf("%d blobs, %s", p.MissingBlobs, size(p.MissingBytes)), "not known"
		}
		if p.TimeToGo > 0 {
			wait = max(p.TimeToGo.Round(time.Second), time.Second).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n",
			p.Zone, p.Repo, cmp.Or(p.Tag, "-"), holds, p.Images, p.Blobs, size(p.Bytes), missing, wait)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if s.Degraded {
		fmt.Fprintln(out, "the node has lost touch with the mesh: pins and images are as it last knew them")
	}
	for _, p := range s.Pins {
		if p.Why != "" {
			fmt.Fprintf(out, "%s: %s\n", p.Pin, p.Why)
		}
	}
	for _, name := range s.Silent {
		fmt.Fprintf(out, "%s gave no answer: what it holds is not counted\n", name)
	}
	return nil
}
