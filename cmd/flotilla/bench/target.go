package bench

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// target is one registry under test.
type target struct {
	name  string
	bases []*url.URL // scheme, host and credentials alone
	space string     // leads the names of its repositories; "" or "a/b/"
	pids  []int
}

// A name must not look like the scheme of a URL that holds a "=".
func namePattern() *regexp.Regexp { return regexp.MustCompile(`^([A-Za-z0-9._-]+)=(.+)$`) }

func parseTargets(o Options) ([]*target, error) {
	var targets []*target
	seen := map[string]bool{}
	for i, text := range o.Targets {
		t, err := parseTarget(text)
		if err != nil {
			return nil, err
		}
		if i < len(o.PIDs) {
			if t.pids, err = parsePIDs(o.PIDs[i]); err != nil {
				return nil, fmt.Errorf("process of %s: %w", t.name, err)
			}
		}
		if seen[t.name] {
			// Measuring one registry against itself shows the noise.
			t.name = fmt.Sprintf("%s#%d", t.name, i+1)
		}
		seen[t.name] = true
		targets = append(targets, t)
	}
	return targets, nil
}

func parseTarget(text string) (*target, error) {
	t := &target{}
	urls := text
	if m := namePattern().FindStringSubmatch(text); m != nil {
		t.name, urls = m[1], m[2]
	}
	for part := range strings.SplitSeq(urls, ",") {
		u, err := url.Parse(part)
		if err != nil {
			// The error of url.Parse would print a password.
			return nil, errors.New("a registry's URL cannot be parsed; it looks like http://host:5000")
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("%s: not a registry's URL such as http://host:5000 or https://user:password@host/project", u.Redacted())
		}
		space := strings.Trim(u.Path, "/")
		if space != "" {
			space += "/"
		}
		if len(t.bases) > 0 && space != t.space {
			return nil, fmt.Errorf("%s: all URLs of one target need the same path", u.Redacted())
		}
		t.space = space
		t.bases = append(t.bases, &url.URL{Scheme: u.Scheme, Host: u.Host, User: u.User})
	}
	if t.name == "" {
		t.name = t.bases[0].Host
	}
	return t, nil
}

func parsePIDs(text string) ([]int, error) {
	if text == "" {
		return nil, nil
	}
	var pids []int
	for part := range strings.SplitSeq(text, ",") {
		pid, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || pid <= 0 {
			return nil, fmt.Errorf("%q is not a process id", part)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}
