package metadata

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Linearizable reads at any node, by the Raft thesis' ReadIndex (section 6.4).
//
// A read is current if this replica has applied everything that was committed
// when the read began. The leader knows what is committed, provided that it
// leads at all; that it does is shown by a majority of the voters having seen
// no later term. raft.VerifyLeader is not used: it counts non-voters, and so
// lets a leader that is cut off from all other voters go on.

// reading is what one round gives: everything committed at the time it began
// is applied where the entry index is.
type reading struct {
	index uint64
	began time.Time
}

// proof is what this replica knows about its own freshness.
type proof struct {
	sync.Mutex
	last   time.Time // when it was last proven current; zero: never since the start
	pardon time.Time // until then nobody waits: a proof was just sought for Timing.Proof, in vain
	why    error     // the last failure
}

// current returns nil once this replica is proven to hold everything that was
// committed when the call began, and ErrUnavailable where that fails.
func (c *Catalog) current(ctx context.Context) error {
	c.proof.Lock()
	pardon, why := c.proof.pardon, c.proof.why
	c.proof.Unlock()
	if time.Now().Before(pardon) {
		return unproven(why)
	}
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timing.Proof)
	defer cancel()
	err := c.retryProof(limited)
	if err == nil {
		return nil
	}
	if ctx.Err() == nil {
		c.proof.Lock()
		c.proof.pardon, c.proof.why = time.Now().Add(c.cfg.Timing.Proof), err
		c.proof.Unlock()
	}
	return unproven(err)
}

// certain is current for those who found nothing here: they have no older
// answer to fall back on, so they sit out an election, as writes do. Where no
// leader was heard of for longer than that takes, the quorum is gone, and they
// are told so as soon as everybody else.
func (c *Catalog) certain(ctx context.Context) error {
	if c.currentAlone() {
		return nil
	}
	ctx, stop := c.tasks.limit(ctx)
	defer stop()
	if c.outOfReach() {
		return c.current(ctx)
	}
	limited, cancel := context.WithTimeout(ctx, c.sitOut())
	defer cancel()
	if err := c.retryProof(limited); err != nil {
		return unproven(err)
	}
	return nil
}

// sitOut is how long those wait for a new leader who can do nothing without one.
func (c *Catalog) sitOut() time.Duration { return 4 * c.cfg.Timing.Election }

// outOfReach reports whether no leader was heard of for longer than an election
// takes: then the quorum is gone, or this node from it.
func (c *Catalog) outOfReach() bool {
	c.proof.Lock()
	heard := c.proof.last
	c.proof.Unlock()
	for _, at := range []time.Time{c.opened, c.raft.LastContact()} {
		if at.After(heard) {
			heard = at
		}
	}
	return c.raft.State() != raft.Leader && time.Since(heard) > c.sitOut()
}

func unproven(why error) error {
	return oci.ErrUnavailable.Because("this node cannot prove that its catalogue is current").Wrap(why)
}

// retryProof asks for rounds until one proves this replica current or ctx
// ends. Each try is a new round.
func (c *Catalog) retryProof(ctx context.Context) error {
	err := c.proveOnce(ctx)
	if err == nil {
		return nil
	}
	news := make(chan struct{}, 1)
	defer c.leaders.add(func(string) { wake(news) })()
	for pause := 5 * time.Millisecond; err != nil; pause = min(2*pause, 100*time.Millisecond) {
		select {
		case <-ctx.Done():
			return err
		case <-news:
		case <-time.After(pause):
		}
		err = c.proveOnce(ctx)
	}
	return nil
}

func (c *Catalog) proveOnce(ctx context.Context) error {
	r, err := c.ownReading()
	if err != nil {
		r, err = c.asking.join(ctx)
	}
	if err != nil {
		return err
	}
	if err := c.state.waitApplied(ctx, r.index); err != nil {
		return fmt.Errorf("wait for entry %d, of which %d is applied: %w", r.index, c.state.applied(), err)
	}
	c.proven(r)
	return nil
}

func (c *Catalog) proven(r reading) {
	c.proof.Lock()
	defer c.proof.Unlock()
	if r.began.After(c.proof.last) {
		c.proof.last = r.began
	}
	c.proof.pardon = time.Time{}
}

// currentAlone is current where nobody need be asked or waited for. It costs
// neither timers nor contexts, which would be most of a read in a mesh of one.
func (c *Catalog) currentAlone() bool {
	r, err := c.ownReading()
	if err != nil || c.state.applied() < r.index {
		return false
	}
	c.proven(r)
	return true
}

// ownReading is the whole of it where this node is the only voter.
func (c *Catalog) ownReading() (reading, error) {
	began := time.Now()
	if c.raft.State() != raft.Leader || !c.soleVoter() {
		return reading{}, errNotLeader
	}
	term, index, err := c.committed()
	if err == nil && (!c.leads(term) || !c.soleVoter()) {
		err = errNotLeader
	}
	if err == nil {
		c.asked.Add(1)
	}
	return reading{index, began}, err
}

// askLeader is one round of this node's waiting reads.
func (c *Catalog) askLeader(ctx context.Context) (reading, error) {
	c.asked.Add(1)
	began := time.Now()
	leader := c.leader()
	switch leader {
	case "":
		return reading{}, oci.ErrUnavailable.Because("no leader is known")
	case c.cfg.ID:
		index, err := c.proofs.join(ctx)
		return reading{index, began}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer c.leaders.add(func(now string) {
		if now != "" && now != leader {
			cancel()
		}
	})()
	var out indexMessage
	err := c.post(ctx, leader, "/metadata/readindex", nil, &out)
	return reading{out.Index, began}, err
}

// proveLead is one round of the leader: it returns an entry at which all that
// was committed when the round began is applied, if this node led then.
func (c *Catalog) proveLead(ctx context.Context) (uint64, error) {
	term, index, err := c.awaitCommitted(ctx)
	if err != nil {
		return 0, err
	}
	voters, _ := c.servers()
	if err := c.askVoters(ctx, term, voters); err != nil {
		return 0, err
	}
	// The majority counted above must be one of the configuration that is in
	// force; changes differ by one server, so equal ends mean no change, or
	// one that this leader committed in between, and then it led.
	if now, _ := c.servers(); !slices.Equal(now, voters) || !c.leads(term) {
		return 0, oci.ErrUnavailable.Because("the voters changed meanwhile")
	}
	return index, nil
}

// awaitCommitted waits, right after an election, for the entry by which a new
// leader learns what is committed.
func (c *Catalog) awaitCommitted(ctx context.Context) (term, index uint64, err error) {
	for {
		if term, index, err = c.committed(); err == nil || c.raft.State() != raft.Leader {
			return term, index, err
		}
		select {
		case <-ctx.Done():
			return 0, 0, err
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// committed returns this leader's term and the last *command* that it knows to
// be committed. Its commit index is worth something only once an entry of its
// own term is committed (thesis, section 6.4, step 1).
//
// A command's index, because that is what replicas wait for: they hear of the
// commit of a Barrier or of raft's own entries only with raft's next message,
// up to CommitTimeout later. And not the leader's own applied index: raft hands
// entries to a goroutine that applies them, so a new leader's state may lag
// behind its commit index, and a follower may already have shown what the
// leader has yet to apply.
func (c *Catalog) committed() (term, index uint64, err error) {
	term = c.raft.CurrentTerm()
	if c.raft.State() != raft.Leader {
		return 0, 0, errNotLeader.WithDetail(c.leader())
	}
	commit := c.raft.CommitIndex()
	if c.logs.term(commit) != term {
		return 0, 0, oci.ErrUnavailable.Because("the leader was elected just now")
	}
	index, ok := c.logs.command(commit)
	if !ok {
		// All that is in the log are raft's own entries; the commands before
		// them are in a snapshot that the state includes.
		index = c.state.applied()
	}
	return term, index, nil
}

// leads reports whether this node leads term, still.
func (c *Catalog) leads(term uint64) bool {
	return c.raft.State() == raft.Leader && c.raft.CurrentTerm() == term
}

// askVoters returns nil when a majority of voters, this node included, have
// said after the call that term is still theirs. A voter takes on a later term
// before it votes in it, so no leader of a later term was elected before.
// Non-voters, whose word means nothing, are not asked.
func (c *Catalog) askVoters(ctx context.Context, term uint64, voters []string) error {
	if !slices.Contains(voters, c.cfg.ID) {
		return errNotLeader
	}
	missing := len(voters) / 2 // of a majority, this node having said yes
	if missing == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		term uint64
		err  error
	}
	answers := make(chan answer, len(voters))
	for _, id := range voters {
		if id == c.cfg.ID {
			continue
		}
		if !c.tasks.start(func(context.Context) {
			term, err := c.voterTerm(id).join(ctx)
			answers <- answer{term, err}
		}) {
			return errClosed
		}
	}
	var errs []error
	for left := len(voters) - 1; left >= missing; left-- {
		switch a := <-answers; {
		case a.err != nil:
			errs = append(errs, a.err)
		case a.term > term:
			return errNotLeader
		case a.term == term:
			if missing--; missing == 0 {
				return nil
			}
		default: // it has not heard of this term yet; its no is not a vote against
			errs = append(errs, errors.New("a voter is behind"))
		}
	}
	return oci.ErrUnavailable.Because("a majority of the voters is out of reach").Wrap(errors.Join(errs...))
}

// voterTerm returns the rounds of asking one voter for its term. A round is
// not given up with the proof that joined it, so that the slower voter of three
// does not cost a connection each time; and a voter that hangs has one request,
// not one for each proof.
func (c *Catalog) voterTerm(id string) *rounds[uint64] {
	c.terms.Lock()
	defer c.terms.Unlock()
	r := c.terms.of[id]
	if r == nil {
		r = &rounds[uint64]{own: c.tasks, time: c.cfg.Timing.Proof, run: func(ctx context.Context) (uint64, error) {
			var out termMessage
			err := c.post(ctx, id, "/metadata/term", nil, &out)
			return out.Term, err
		}}
		c.terms.of[id] = r
	}
	return r
}

// becomeReady seeks the first proof since the start.
func (c *Catalog) becomeReady(ctx context.Context) {
	for ctx.Err() == nil {
		limited, cancel := context.WithTimeout(ctx, c.cfg.Timing.Proof)
		err := c.retryProof(limited)
		cancel()
		if err == nil {
			return
		}
		c.proof.Lock()
		c.proof.why = err
		c.proof.Unlock()
	}
}

// Ready returns nil once this replica was proven current since the start, so
// that it can serve reads, and otherwise says what it waits for.
func (c *Catalog) Ready() error {
	c.proof.Lock()
	last, why := c.proof.last, c.proof.why
	c.proof.Unlock()
	if !last.IsZero() {
		return nil
	}
	voters, _ := c.servers()
	switch {
	case len(voters) == 0:
		return oci.ErrUnavailable.Because("this node is not a member yet: no leader has sent it the catalogue")
	case c.leader() == "":
		return oci.ErrUnavailable.Because("no leader is known; %d voters must agree on one", len(voters)/2+1)
	}
	if behind := c.raft.CommitIndex() - min(c.raft.AppliedIndex(), c.raft.CommitIndex()); behind > 0 {
		return oci.ErrUnavailable.Because("the catalogue is %d entries behind", behind)
	}
	return unproven(why)
}

// Writable returns nil if the mesh could take a write now: a leader answers,
// and a majority of the voters with it.
func (c *Catalog) Writable(ctx context.Context) error {
	ctx, leave, err := c.tasks.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timing.Proof)
	defer cancel()
	if err := c.retryProof(ctx); err != nil {
		return oci.ErrUnavailable.Because("the mesh takes no writes now").Wrap(err)
	}
	return nil
}
