package main

import (
	"cmp"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/node"
)

func whereCommand() *cobra.Command {
	var r remote
	var asJSON bool
	c := &cobra.Command{
		Use:   "where IMAGE",
		Short: "Show which nodes and zones hold which layers of an image",
		Long: `Show which nodes and zones (sites or datacenters) hold which layers of an image:
NAME, NAME:TAG or NAME@DIGEST, without the registry's host, which is --server.
The tag is latest where none is given. Of an index all images are shown.

Whoever may pull the image may ask. Without the mesh's secret, name and password
may stand in the URL of --server: https://ann:password@registry.example`,
		Args: oneArgument("image"),
		RunE: func(c *cobra.Command, args []string) error {
			repo, ref, err := parseImage(args[0])
			if err != nil {
				return usageError{err}
			}
			query := url.Values{"repo": {repo}, "ref": {ref.String()}}
			var w node.Whereabouts
			if err := r.look(c.Context(), "/flotilla/v1/where?"+query.Encode(), &w); err != nil {
				return err
			}
			return show(c, asJSON, w, printWhere)
		},
	}
	r.flags(c)
	jsonFlag(c, &asJSON)
	return c
}

// parseImage reads a name with a tag or a digest, or both, of which the digest
// counts.
func parseImage(image string) (repo string, ref oci.Reference, err error) {
	repo, sum, pinned := strings.Cut(image, "@")
	tag := ""
	if colon := strings.LastIndexByte(repo, ':'); colon > strings.LastIndexByte(repo, '/') {
		repo, tag = repo[:colon], repo[colon+1:]
		if err := oci.CheckTag(tag); err != nil {
			return "", ref, err
		}
	}
	if err := oci.CheckName(repo); err != nil {
		return "", ref, err
	}
	text := cmp.Or(tag, "latest")
	if pinned {
		if ref.Digest, err = oci.ParseDigest(sum); err != nil {
			return "", ref, err
		}
		text = sum
	}
	ref, err = oci.ParseReference(text)
	return repo, ref, err
}

func printWhere(out io.Writer, found node.Whereabouts) error {
	fmt.Fprintf(out, "%s %s is %s\n", found.Repository, found.Reference, found.Digest)
	if found.Degraded {
		fmt.Fprintf(out, "the node has lost touch with the mesh: the tag is as it was %s\n", ago(found.Age))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KIND\tDIGEST\tSIZE\tHELD BY")
	for _, p := range found.Parts {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s", strings.TrimSpace(p.Kind+" "+p.Platform), short(p.Digest), size(p.Size), heldBy(p, found.Zones))
		if len(p.Lacking) > 0 {
			fmt.Fprintf(w, "\tmissing at %s", listed(p.Lacking))
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if found.More {
		fmt.Fprintln(out, "there is more than this list shows")
	}
	for _, n := range found.Silent {
		fmt.Fprintf(out, "%s gave no answer: what it holds is not in the list\n", placed(n))
	}
	var sums []string
	for _, z := range found.Zones {
		sums = append(sums, sumOf(z))
	}
	of := ""
	if found.More {
		of = "of what is listed, "
	}
	fmt.Fprintln(out, of+strings.Join(sums, "; "))
	return nil
}

func ago(d time.Duration) string {
	if d == 0 {
		return "at some time"
	}
	return "up to " + d.Round(time.Second).String() + " ago"
}

// short returns as much of a digest as people tell digests apart by, "-" for
// none.
func short(d digest.Digest) string {
	if d == "" {
		return "-"
	}
	alg, sum, _ := strings.Cut(d.String(), ":")
	return alg + ":" + sum[:min(len(sum), 12)]
}

// heldBy returns a cell for each zone.
func heldBy(p node.ImagePart, zones []node.ZoneParts) string {
	switch p.State {
	case node.PartInLog:
		return "every node"
	case node.PartAbsent:
		return "nobody: the repository does not have it"
	case node.PartUnknown:
		return "not known: the node has lost touch with the mesh"
	}
	var cells []string
	for _, z := range zones {
		cells = append(cells, z.Zone+": "+listed(p.Holders[z.Zone]))
	}
	return strings.Join(cells, "\t")
}

// listed lists nodes, as many as fit in a line.
func listed(list []string) string {
	const most = 8
	switch {
	case len(list) == 0:
		return "-"
	case len(list) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], " "), len(list)-most)
	}
	return strings.Join(list, " ")
}

// sumOf says how much of the image a zone has.
func sumOf(z node.ZoneParts) string {
	switch {
	case z.Blobs == z.Of:
		return z.Zone + ": complete"
	case z.Unsure:
		return fmt.Sprintf("%s: at least %d of %d blobs, up to %s missing", z.Zone, z.Blobs, z.Of, size(z.Missing))
	}
	return fmt.Sprintf("%s: %d of %d blobs, %s missing", z.Zone, z.Blobs, z.Of, size(z.Missing))
}
