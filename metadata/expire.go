package metadata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// Names expire by entries that the leader makes from what it finds in its own
// state. Ages are differences of what leaders' clocks said, so it makes them
// only while most voters' clocks say what its own does.

const (
	clocksApart = time.Minute // how far two clocks may differ

	expireNames = 500    // in one entry
	expireKeys  = 10_000 // looked at before one, so that no iterator stays open for long
)

// Expired counts the names that a pass dropped.
type Expired struct {
	Links     int
	Manifests int
}

// Candidate is a name that would expire.
type Candidate struct {
	Repo   string
	Digest digest.Digest
	Kind   string // CandidateLink or CandidateManifest
	Why    string // for people
	Since  time.Time
}

// The kinds of candidates.
const (
	CandidateLink     = "link"
	CandidateManifest = "manifest"
)

// ages says, in log time, how old is old enough: what was used since stays.
// Untagged 0 keeps all manifests.
type ages struct{ links, untagged int64 }

func (c *Catalog) agesAt(now time.Time) ages {
	a := ages{links: now.Add(-c.cfg.Timing.LinkAge).UnixNano()}
	if keep := c.Cluster().UntaggedAfter; keep > 0 {
		a.untagged = now.Add(-keep).UnixNano()
	}
	return a
}

// Expire is one pass over the names: it drops links that nothing has used for
// Timing.LinkAge and no manifest of their repository names, and, where the
// policy says so, manifests that nothing keeps. It does nothing unless this
// node leads and every member knows the operation, and nothing while another
// pass runs. A pass is bounded; the next goes on where it ended. ErrUnavailable
// while no majority of the voters' clocks agree with this one's.
func (c *Catalog) Expire(ctx context.Context) (gone Expired, err error) {
	ctx, leave, err := c.tasks.enter(ctx)
	if err != nil {
		return gone, err
	}
	defer leave()
	if c.raft.State() != raft.Leader || c.state.level() < levelHealing || !c.expiry.TryLock() {
		return gone, nil
	}
	defer c.expiry.Unlock()
	now := c.cfg.Now()
	if err := c.clocksAgree(ctx, now); err != nil {
		return gone, fmt.Errorf("expire names: %w", err)
	}
	a := c.agesAt(now)
	for left := c.bounds.expire; left > 0 && c.raft.State() == raft.Leader; {
		f, err := c.state.findIdle(c.expiry.next, a, expireNames, min(left, expireKeys))
		if err == nil {
			err = c.drop(ctx, f.found, a, &gone)
		}
		if err != nil {
			return gone, fmt.Errorf("expire names: %w", err)
		}
		c.expiry.next = f.next
		if f.next == nil {
			break
		}
		left -= f.keys
	}
	return gone, nil
}

// drop proposes that names go, and counts those that went: links by one entry
// and manifests by another, so that the count tells which.
func (c *Catalog) drop(ctx context.Context, found []Candidate, a ages, gone *Expired) error {
	links := &wire.Expire{LinksBefore: a.links}
	manifests := &wire.Expire{UntaggedBefore: a.untagged}
	for _, f := range found {
		n := &wire.Name{Repo: f.Repo, Digest: f.Digest.String()}
		if f.Kind == CandidateLink {
			links.Links = append(links.Links, n)
		} else {
			manifests.Manifests = append(manifests.Manifests, n)
		}
	}
	for _, entry := range []struct {
		op    *wire.Expire
		names int
		count *int
	}{
		{links, len(links.Links), &gone.Links},
		{manifests, len(manifests.Manifests), &gone.Manifests},
	} {
		if entry.names == 0 {
			continue
		}
		out, err := c.write(ctx, &wire.Command{Op: &wire.Command_Expire{Expire: entry.op}})
		if err != nil {
			return err
		}
		*entry.count += int(out.Size)
	}
	return nil
}

// Expirable lists at most n names that a pass of Expire would drop if its clock
// said now, as far as this replica knows. It changes nothing, and any node may
// be asked.
func (c *Catalog) Expirable(ctx context.Context, now time.Time, n int) ([]Candidate, error) {
	ctx, leave, err := c.tasks.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	var all []Candidate
	a := c.agesAt(now)
	for from := []byte(nil); len(all) < n; {
		f, err := c.state.findIdle(from, a, n-len(all), expireKeys)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, wrapRead("names that would expire", err)
		}
		all = append(all, f.found...)
		if from = f.next; from == nil {
			break
		}
	}
	return all, nil
}

// SetPolicy sets what the mesh does with names by itself. Manifests without a
// tag are kept as long as links at least: a push may take as long before it
// names what it pushed.
func (c *Catalog) SetPolicy(ctx context.Context, p Policy) error {
	if least := c.cfg.Timing.LinkAge; p.UntaggedAfter != 0 && p.UntaggedAfter < least {
		return fmt.Errorf("set policy: %w", oci.ErrUnsupported.Because("manifests without a tag are kept for %v at least", least))
	}
	op := &wire.Policy{UntaggedAfter: int64(p.UntaggedAfter)}
	_, err := c.write(ctx, &wire.Command{Op: &wire.Command_Policy{Policy: op}})
	return wrapWrite("set policy", err)
}

// idle is what a part of the search found.
type idle struct {
	found []Candidate
	keys  int    // looked at
	next  []byte // where to go on; nil is the end
}

// findIdle looks for at most n names that may go, and at as many keys at the
// most, from a key on.
func (s *state) findIdle(from []byte, a ages, n, keys int) (f idle, err error) {
	db, err := s.acquire()
	if err != nil {
		return f, err
	}
	defer s.mu.RUnlock()
	at := db.NewSnapshot()
	defer at.Close()
	kinds := string(kindLink)
	if a.untagged > 0 {
		kinds += string(kindUntagged)
	}
	err = walkRepos(at, from, kinds, func(e repoEntry) (bool, error) {
		if len(f.found) == n || f.keys == keys {
			f.next = bytes.Clone(e.key)
			return false, nil
		}
		f.keys++
		c, ok, err := candidate(at, e, a)
		if ok {
			f.found = append(f.found, c)
		}
		return true, err
	})
	return f, err
}

func candidate(r pebble.Reader, e repoEntry, a ages) (c Candidate, ok bool, err error) {
	var since int64
	if e.kind == kindLink {
		var l link
		if l, err = decodeLink(e.value); err == nil {
			ok, err = linkIdle(r, e.repo, e.d, l, a.links)
		}
		since, c.Kind, c.Why = l.used, CandidateLink, "no manifest of the repository names it"
	} else {
		if since, err = decodeTime(e.value); err == nil {
			_, ok, err = manifestIdle(r, e.repo, e.d, since, a.untagged)
		}
		c.Kind, c.Why = CandidateManifest, "no tag, no other manifest and no subject keeps it"
	}
	if !ok || err != nil {
		return Candidate{}, false, err
	}
	c.Repo, c.Digest, c.Since = e.repo, sumDigest([]byte(e.d)), time.Unix(0, since)
	return c, true, nil
}

// clocksAgree returns nil if a majority of the voters, this node included, have
// clocks that say, within a minute, what this one's said just now.
func (c *Catalog) clocksAgree(ctx context.Context, now time.Time) error {
	voters, _ := c.servers()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Proof)
	defer cancel()
	answers := make(chan error, len(voters))
	for _, id := range voters {
		if id == c.cfg.ID {
			answers <- nil
			continue
		}
		if !c.tasks.start(func(context.Context) { answers <- c.clockAgrees(ctx, id, now) }) {
			return errClosed
		}
	}
	agree := 0
	var errs []error
	for range voters {
		if err := <-answers; err != nil {
			c.log.Warn("a voter's clock is not known to agree", "error", err)
			errs = append(errs, err)
			continue
		}
		agree++
	}
	if agree <= len(voters)/2 {
		return oci.ErrUnavailable.Because("the clocks of most voters do not agree with this one's").Wrap(errors.Join(errs...))
	}
	return nil
}

// clockAgrees asks the member id for its clock. Its answer is made after now,
// which ages will be counted from, and before it arrives here.
func (c *Catalog) clockAgrees(ctx context.Context, id string, now time.Time) error {
	var out clockMessage
	err := c.post(ctx, id, "/metadata/clock", nil, &out)
	answered := c.cfg.Now()
	if err != nil {
		return err
	}
	theirs := time.Unix(0, out.Now)
	switch {
	case theirs.Before(now.Add(-clocksApart)):
		return fmt.Errorf("the clock of member %s is %v behind", id, now.Sub(theirs).Round(time.Second))
	case theirs.After(answered.Add(clocksApart)):
		return fmt.Errorf("the clock of member %s is %v ahead", id, theirs.Sub(answered).Round(time.Second))
	}
	return nil
}
