package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/node"
)

// maxAnswer bounds the answer of a server that may not be a flotilla node.
const maxAnswer = 16 << 20

// remote is a node's public port as the commands reach it.
type remote struct {
	server     string
	secretFile string // "" for calls without a token
	plaintext  bool
	ca         string // file of the authorities that signed the node's certificate; "" for the system's
	insecure   bool   // any certificate will do
}

// flags declares what a command needs to reach the mesh, and to show whose it is.
func (r *remote) flags(c *cobra.Command) {
	c.Flags().StringVar(&r.secretFile, "secret-file", "flotilla-data/mesh.secret", "the mesh's secret, which makes the token for this call")
	c.Flags().BoolVar(&r.plaintext, "plaintext", false, "show the token over plain HTTP to another machine, too")
	c.Flags().StringVar(&r.server, "server", "http://127.0.0.1:5000", "public address of any node")
	c.Flags().StringVar(&r.ca, "ca", "", "PEM file of the authorities that the node's certificate is checked with (default the system's)")
	c.Flags().BoolVar(&r.insecure, "insecure-tls", false, "accept any certificate")
	// What an operator says anew each time, such as --yes, no variable says.
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		return fromEnvironment(c.Flags(), []string{"server", "secret-file", "ca"})
	}
}

// client returns what sends the requests, with the trust that was asked for.
func (r *remote) client() (*http.Client, error) {
	if r.ca == "" && !r.insecure {
		return http.DefaultClient, nil
	}
	trust := &tls.Config{InsecureSkipVerify: r.insecure}
	if r.ca != "" {
		var err error
		if trust.RootCAs, err = node.Authorities(r.ca); err != nil {
			return nil, usageError{fmt.Errorf("--ca: %w", err)}
		}
	}
	// One request each: a connection that was kept would have no user.
	return &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: trust, ForceAttemptHTTP2: true, DisableKeepAlives: true,
	}}, nil
}

// call sends a request and returns the body of a good answer, which the caller
// closes. An error is what the node said.
func (r *remote) call(ctx context.Context, method, path string, body io.Reader) (io.ReadCloser, error) {
	base := r.server
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	u, err := url.Parse(strings.TrimSuffix(base, "/") + path)
	if err != nil {
		return nil, usageError{fmt.Errorf("--server: %w", err)}
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, usageError{fmt.Errorf("--server: %w", err)}
	}
	if r.secretFile != "" {
		if err := r.sign(req); err != nil {
			return nil, unsigned{err}
		}
	}
	client, err := r.client()
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		return nil, refusal(resp)
	}
	return resp.Body, nil
}

// sign adds the operator's token, but not where others on the way could read it.
func (r *remote) sign(req *http.Request) error {
	host := req.URL.Hostname()
	ip := net.ParseIP(host)
	local := host == "localhost" || ip != nil && ip.IsLoopback()
	if req.URL.Scheme != "https" && !local && !r.plaintext {
		return usageError{errors.New("--server is plain HTTP on another machine: whoever listens could do the same for ten minutes; use https, run the command there, or say --plaintext")}
	}
	token, err := node.OperatorToken(r.secretFile, time.Now())
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	return nil
}

// unsigned is why a call that wants the operator's token could not be made.
type unsigned struct{ error }

func (u unsigned) Unwrap() error { return u.error }

// refused is a node's answer that it does not do what was asked.
type refused struct {
	status int
	why    string
}

func (r refused) Error() string { return r.why }

// refusal is what a node, or something that is none, answered instead.
func refusal(resp *http.Response) error {
	var answer struct {
		Errors []struct {
			Message string `json:"message"`
		} `json:"errors"`
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil || json.Unmarshal(b, &answer) != nil || len(answer.Errors) == 0 {
		return fmt.Errorf("%s answers %s", resp.Request.URL, resp.Status)
	}
	return refused{resp.StatusCode, answer.Errors[0].Message}
}

// fetch decodes a node's answer to a request without a body into v.
func (r *remote) fetch(ctx context.Context, method, path string, v any) error {
	return r.sendBytes(ctx, method, path, nil, v)
}

// send sends in as JSON and decodes the answer into v.
func (r *remote) send(ctx context.Context, method, path string, in, v any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return r.sendBytes(ctx, method, path, b, v)
}

func (r *remote) sendBytes(ctx context.Context, method, path string, in []byte, v any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	body, err := r.call(ctx, method, path, bytes.NewReader(in))
	if err != nil {
		return err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxAnswer))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s does not answer like a flotilla node", r.server)
	}
	return nil
}

// look decodes what a node answers to a GET that those who hold the secret may
// send, and others perhaps too: it is sent without the operator's token where
// none can be made, or shown.
func (r *remote) look(ctx context.Context, path string, v any) error {
	err := r.fetch(ctx, http.MethodGet, path, v)
	var why unsigned
	if !errors.As(err, &why) {
		return err
	}
	open := *r
	open.secretFile = ""
	err = open.fetch(ctx, http.MethodGet, path, v)
	var no refused
	if errors.As(err, &no) && no.status == http.StatusUnauthorized {
		err = fmt.Errorf("%w: %w", err, why)
	}
	return err
}

// status asks a node how the mesh looks from there.
func (r *remote) status(ctx context.Context) (node.Status, error) {
	var s node.Status
	err := r.look(ctx, "/flotilla/v1/status", &s)
	if err == nil && s.Node.ID == "" {
		err = fmt.Errorf("%s does not answer like a flotilla node", r.server)
	}
	return s, err
}

// jsonFlag declares the flag of commands whose answer programs may want to read.
func jsonFlag(c *cobra.Command, asJSON *bool) {
	c.Flags().BoolVar(asJSON, "json", false, "print the whole answer as JSON")
}

// show prints a node's answer, by print where people read it.
func show[T any](c *cobra.Command, asJSON bool, answer T, print func(io.Writer, T) error) error {
	if asJSON {
		return json.NewEncoder(c.OutOrStdout()).Encode(answer)
	}
	return print(c.OutOrStdout(), answer)
}

// oneArgument is the rule of commands that act on one thing.
func oneArgument(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{fmt.Errorf("%s wants one %s", c.CommandPath(), what)}
		}
		return nil
	}
}

// errNotSaid ends a command that has told what it would do.
var errNotSaid = errors.New("nothing was done: say --yes to do it")
