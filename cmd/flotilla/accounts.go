package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/flotilla-registry/flotilla/api/auth"
)

const accountsPath = "/flotilla/v1/accounts"

func accountPath(name string) string { return accountsPath + "/" + url.PathEscape(name) }

func userCommand() *cobra.Command {
	return accountCommands(auth.User, "People who may use the mesh", `People who may use the mesh. The accounts are the same on every node. While
there is none, anyone may do everything; from the first one on, nobody may do
anything that a rule does not allow (see flotilla apply), except for accounts
that were added with --admin, who may do everything.`, userAddCommand())
}

func robotCommand() *cobra.Command {
	return accountCommands(auth.Robot, "Programs that may use the mesh",
		`Programs that may use the mesh: accounts whose secret is made here and shown
once, and which may expire.`, robotAddCommand())
}

// accountCommands are what users and robots have in common.
func accountCommands(kind auth.Kind, short, long string, add *cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: string(kind), Short: short, Long: long, Args: noArguments}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	c.AddCommand(add, accountListCommand(kind), rotateCommand(kind), accountRemoveCommand(kind))
	return c
}

func userAddCommand() *cobra.Command {
	var r remote
	var admin, stdin bool
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a user, with a password that is asked for",
		Args:  oneArgument("name"),
		RunE: func(c *cobra.Command, args []string) error {
			password, err := readPassword(c, stdin)
			if err != nil {
				return err
			}
			in := auth.NewAccount{Name: args[0], Kind: auth.User, Password: password, Admin: admin}
			return r.change(c, accountsPath, in, func(made auth.MadeAccount) {
				fmt.Fprintf(c.OutOrStdout(), "%s was added\n", args[0])
				if made.Account.Admin && !admin {
					fmt.Fprintln(c.OutOrStdout(), "It is the first account, and so an administrator; from now on nobody else may do anything that flotilla apply does not allow.")
				}
			})
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&admin, "admin", false, "may do everything, whatever the rules say")
	passwordFlag(c, &stdin)
	return c
}

func robotAddCommand() *cobra.Command {
	var r remote
	var expires time.Duration
	var admin bool
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a robot, and print its secret",
		Args:  oneArgument("name"),
		RunE: func(c *cobra.Command, args []string) error {
			in := auth.NewAccount{Name: args[0], Kind: auth.Robot, Admin: admin}
			if expires < 0 {
				return usageError{errors.New("--expires: want a duration such as 720h")}
			}
			if expires > 0 {
				in.Expires = time.Now().Add(expires)
			}
			return r.change(c, accountsPath, in, func(made auth.MadeAccount) {
				fmt.Fprintln(c.OutOrStdout(), made.Secret)
			})
		},
	}
	r.flags(c)
	c.Flags().DurationVar(&expires, "expires", 0, "how long it is good for (default for ever)")
	c.Flags().BoolVar(&admin, "admin", false, "may do everything, whatever the rules say")
	return c
}

func accountListCommand(kind auth.Kind) *cobra.Command {
	var r remote
	c := &cobra.Command{
		Use:   "list",
		Short: "List the " + string(kind) + "s",
		RunE: func(c *cobra.Command, _ []string) error {
			var list auth.AccountList
			if err := r.fetch(c.Context(), http.MethodGet, accountsPath, &list); err != nil {
				return err
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tADMIN\tMADE\tEXPIRES")
			for _, a := range list.Accounts {
				if a.Kind != kind && (kind != auth.User || a.Kind == auth.Robot) {
					continue // those of a htpasswd file, and what this node cannot read, stand among the users
				}
				fmt.Fprintf(w, "%s\t%t\t%s\t%s\n", a.Name, a.Admin, date(a.Made), date(a.Expires))
			}
			return w.Flush()
		},
		Args: noArguments,
	}
	r.flags(c)
	return c
}

func date(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.RFC3339)
}

func rotateCommand(kind auth.Kind) *cobra.Command {
	var r remote
	var stdin bool
	c := &cobra.Command{
		Use:   "rotate NAME",
		Short: "Give a " + string(kind) + " a new secret; the old one, and what was logged in with it, is refused at once",
		Args:  oneArgument("name"),
		RunE: func(c *cobra.Command, args []string) error {
			in := auth.NewSecret{}
			if kind == auth.User {
				var err error
				if in.Password, err = readPassword(c, stdin); err != nil {
					return err
				}
			}
			return r.change(c, accountPath(args[0])+"/secret", in, func(made auth.MadeAccount) {
				if made.Secret != "" {
					fmt.Fprintln(c.OutOrStdout(), made.Secret)
				}
			})
		},
	}
	r.flags(c)
	if kind == auth.User {
		passwordFlag(c, &stdin)
	}
	return c
}

func accountRemoveCommand(kind auth.Kind) *cobra.Command {
	var r remote
	var yes bool
	c := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a " + string(kind) + "; what was logged in with it is refused at once",
		Args:  oneArgument("name"),
		RunE: func(c *cobra.Command, args []string) error {
			path := accountPath(args[0])
			if yes {
				path += "?last="
			}
			return r.drop(c, path)
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&yes, "yes", false, "do it even if it is the last account, without which everybody may do everything")
	return c
}

// change makes or changes an account and has tell say what came of it.
func (r *remote) change(c *cobra.Command, path string, in any, tell func(auth.MadeAccount)) error {
	var made auth.MadeAccount
	if err := r.send(c.Context(), http.MethodPost, path, in, &made); err != nil {
		return err
	}
	tell(made)
	return behind(made.Everywhere)
}

// drop has the mesh forget what is at path.
func (r *remote) drop(c *cobra.Command, path string) error {
	var done auth.Done
	if err := r.fetch(c.Context(), http.MethodDelete, path, &done); err != nil {
		return err
	}
	return behind(done.Everywhere)
}

// behind is the error of a change that not all live nodes know of.
func behind(everywhere bool) error {
	if everywhere {
		return nil
	}
	return errors.New("it is done, but some nodes have not heard of it yet")
}

func passwordFlag(c *cobra.Command, stdin *bool) {
	c.Flags().BoolVar(stdin, "password-stdin", false, "read the password from standard input")
}

// readPassword takes one line from standard input, or asks on a terminal, twice.
func readPassword(c *cobra.Command, stdin bool) (string, error) {
	if stdin {
		line, err := bufio.NewReader(io.LimitReader(c.InOrStdin(), 1024)).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		return strings.TrimRight(line, "\r\n"), nil
	}
	fd := int(os.Stdin.Fd())
	if !term.IsTerminal(fd) {
		return "", usageError{errors.New("there is no terminal to ask for the password: say --password-stdin")}
	}
	var said [2]string
	for i, prompt := range []string{"Password: ", "Again: "} {
		fmt.Fprint(c.ErrOrStderr(), prompt)
		b, err := term.ReadPassword(fd)
		fmt.Fprintln(c.ErrOrStderr())
		if err != nil {
			return "", err
		}
		said[i] = string(b)
	}
	if said[0] != said[1] {
		return "", usageError{errors.New("the two passwords differ")}
	}
	return said[0], nil
}
