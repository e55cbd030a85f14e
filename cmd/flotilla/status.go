package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/node"
)

// maxStatus bounds the answer of a server that may not be a flotilla node.
const maxStatus = 16 << 20

func statusCommand() *cobra.Command {
	var server string
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Show members, zones, leader and health of the mesh, as one node sees them",
		RunE: func(c *cobra.Command, _ []string) error {
			body, err := fetchStatus(c, server)
			if err != nil {
				return err
			}
			if asJSON {
				_, err = c.OutOrStdout().Write(body)
				return err
			}
			var s node.Status
			if err := json.Unmarshal(body, &s); err != nil || s.Node.ID == "" {
				return fmt.Errorf("%s does not answer like a flotilla node", server)
			}
			return printStatus(c.OutOrStdout(), s)
		},
	}
	c.Flags().StringVar(&server, "server", "http://127.0.0.1:5000", "public address of any node")
	c.Flags().BoolVar(&asJSON, "json", false, "print the whole answer as JSON")
	return c
}

func fetchStatus(c *cobra.Command, server string) ([]byte, error) {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	url := strings.TrimSuffix(server, "/") + "/flotilla/v1/status"
	req, err := http.NewRequestWithContext(c.Context(), http.MethodGet, url, nil)
	if err != nil {
		return nil, usageError{fmt.Errorf("--server: %w", err)}
	}
	resp, err := (&http.Client{Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return body, nil
}

func printStatus(out io.Writer, s node.Status) error {
	mesh := s.Cluster.ID
	if mesh == "" {
		mesh = "none yet"
	}
	fmt.Fprintf(out, "mesh     %s\nnode     %s (%s), flotilla %s\nhealth   %s\n", mesh, s.Node.Name, s.Node.ID, s.Node.Version, s.Health)
	for _, note := range s.Notes {
		fmt.Fprintf(out, "         %s\n", note)
	}
	fmt.Fprintf(out, "copies   %d of each blob\ndisk     %s free of %s\n\n", s.Cluster.Replicas, gib(s.Disk.Free), gib(s.Disk.Total))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tZONE\tROLE\tSTATE\tWEIGHT\tADDRESS\tID")
	for _, m := range s.Members {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d GiB\t%s\t%s\n", m.Name, m.Zone, m.Role, m.State, m.Weight, m.Address, m.ID)
	}
	return w.Flush()
}

func gib(n uint64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }
