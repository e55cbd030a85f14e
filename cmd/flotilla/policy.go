package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/api/auth"
)

const policyPath = "/flotilla/v1/policy"

// maxPolicy bounds the file that apply reads; nodes take no larger one.
const maxPolicy = 256 << 10

func applyCommand() *cobra.Command {
	var r remote
	var file string
	var dryRun bool
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make a document the policy of the mesh: who may do what, immutable tags, limits",
		Long: `Make a document the policy of the mesh, the whole of it: what the document does
not say is not allowed any more. It is checked as a whole before anything
changes, and is in force on every live node when the command returns. The
command prints what changes; --dry-run changes nothing. - reads standard input.

    rules:                          # the first whose who and repositories fit decides
      - who: [ci]                   # account names; "*" is every account
        repositories: ["team-a/**"] # * is within a path component, ** any number of them
        allow: [pull, push, list]   # also delete, admin
    anonymous:
      pull: ["public/**"]           # for anybody, without an account
    immutable:
      - repositories: ["release/**"]
        tags: ["v*"]
        except: ["*-rc*"]
    limits:
      accountRequests: 200          # a second
      addressRequests: 100
      uploads: 64                   # open at once, for each account`,
		RunE: func(c *cobra.Command, _ []string) error {
			if file == "" {
				return usageError{errors.New("say -f FILE, or -f - for standard input")}
			}
			document, err := readDocument(c, file)
			if err != nil {
				return err
			}
			query := url.Values{}
			if dryRun {
				query.Set("dry-run", "")
			}
			var done auth.Applied
			if err := r.sendBytes(c.Context(), http.MethodPut, policyPath+"?"+query.Encode(), document, &done); err != nil {
				return err
			}
			if done.Changes == "" {
				done.Changes = "nothing changes\n"
			}
			fmt.Fprint(c.OutOrStdout(), done.Changes)
			return behind(done.Everywhere)
		},
	}
	r.flags(c)
	c.Flags().StringVarP(&file, "file", "f", "", "the document, in YAML or JSON")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "print what would change, and change nothing")
	return c
}

func readDocument(c *cobra.Command, file string) ([]byte, error) {
	in := c.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxPolicy+1))
	if err == nil && len(b) > maxPolicy {
		err = fmt.Errorf("%s is larger than %d KiB", file, maxPolicy>>10)
	}
	return b, err
}

func getCommand() *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "get",
		Short: "Print the policy of the mesh, as apply takes it",
		RunE: func(c *cobra.Command, _ []string) error {
			body, err := r.call(c.Context(), http.MethodGet, policyPath, nil)
			if err != nil {
				return err
			}
			defer body.Close()
			_, err = io.Copy(c.OutOrStdout(), io.LimitReader(body, maxAnswer))
			return err
		},
	}
	r.flags(c)
	return c
}

func logoutCommand() *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "logout-all",
		Short: "Refuse every token given out so far: whoever logged in with docker login does so again",
		RunE:  func(c *cobra.Command, _ []string) error { return r.drop(c, "/flotilla/v1/tokens") },
	}
	r.flags(c)
	return c
}
