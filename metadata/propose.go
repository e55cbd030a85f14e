package metadata

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

// FeatureLevel is the highest set of operations that this version understands:
// a member announces it, and the log carries only what the lowest of all
// members allows.
const FeatureLevel = 4

// levelHealing brought the operations by which a mesh heals itself, and the
// indexes that they need (rules_index.go).
const levelHealing = 2

// levelSettings brought settings, and tags that may not move.
const levelSettings = 3

// levelNamedBy brought names that come too late to be made. Below it Apply
// ignores the field, as a member that does not know it does, so that anybody may
// propose it at any time.
const levelNamedBy = 4

const (
	writeTime   = time.Minute      // a write is given up after this; the state knows its request id for longer
	attemptTime = 10 * time.Second // for one leader to answer
	enqueueTime = 5 * time.Second  // for raft to take a proposal
	maxCommand  = 6 << 20          // the longest list that an index of 4 MiB can hold, and then some
)

// errNotLeader is said between nodes only. It is certain: nothing was taken.
// Detail holds the UUID of the leader, where known.
var errNotLeader = &oci.Error{Kind: "not-leader", Code: "UNAVAILABLE", Message: "this node does not lead the mesh"}

// proposal is what became of a command: the entry that holds it, and what Apply
// answered. It is JSON between nodes.
type proposal struct {
	Index uint64          `json:"index"`
	Size  int64           `json:"size,omitempty"`  // see decision
	Err   json.RawMessage `json:"error,omitempty"` // oci.EncodeError
}

func (o proposal) err() error {
	if len(o.Err) == 0 {
		return nil
	}
	return oci.DecodeError(o.Err)
}

// write has the mesh agree on cmd and returns when this node has applied it,
// so that its own reads see it. The error is Apply's answer, or ErrUnavailable
// where there is none: then the command may or may not take effect later.
//
// An attempt that ends in doubt (the leader went, the connection broke) is
// repeated under the same request id, which Apply takes once. As long as none did,
// a write is refused once no leader was heard of for longer than an election takes.
func (c *Catalog) write(ctx context.Context, cmd *wire.Command) (proposal, error) {
	ctx, leave, err := c.tasks.enter(ctx)
	if err != nil {
		return proposal{}, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	cmd.Version = 1
	cmd.RequestId = rand.Text()
	out, err := c.propose(ctx, cmd)
	if err != nil {
		return proposal{}, err
	}
	if err := c.state.waitApplied(ctx, out.Index); err != nil {
		return proposal{}, oci.ErrUnavailable.Because("the write was made, but this node has not heard of it").Wrap(err)
	}
	return out, out.err()
}

// propose tries until a leader has answered, one way or another.
func (c *Catalog) propose(ctx context.Context, cmd *wire.Command) (proposal, error) {
	news := make(chan struct{}, 1)
	defer c.leaders.add(func(string) { wake(news) })()
	hint, doubt := "", false
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		leader := hint
		if leader == "" {
			leader = c.leader()
		}
		out, err := c.proposeAt(ctx, leader, cmd)
		if err == nil {
			return out, nil
		}
		if !errors.Is(err, errNotLeader) && !errors.Is(err, oci.ErrUnavailable) {
			return proposal{}, err
		}
		if ctx.Err() != nil {
			return proposal{}, oci.ErrUnavailable.Because("no leader took the write").Wrap(err)
		}
		doubt = doubt || !errors.Is(err, errNotLeader)
		if !doubt && c.leader() == "" && c.outOfReach() {
			return proposal{}, oci.ErrUnavailable.Because("no leader is in reach").Wrap(err)
		}
		if next := hinted(err); hint == "" && next != "" && next != leader {
			hint = next // once: two nodes may name each other
			continue
		}
		hint = ""
		select {
		case <-ctx.Done():
		case <-news:
		case <-time.After(pause):
		}
	}
}

// hinted returns the leader that a node which is not named, or "".
func hinted(err error) string {
	var e *oci.Error
	if !errors.As(err, &e) || e.Kind != errNotLeader.Kind {
		return ""
	}
	id, _ := e.Detail.(string)
	return id
}

func (c *Catalog) proposeAt(ctx context.Context, leader string, cmd *wire.Command) (proposal, error) {
	switch leader {
	case "":
		return proposal{}, errNotLeader
	case c.cfg.ID:
		return c.proposeHere(ctx, cmd)
	}
	body, err := encode(cmd)
	if err != nil {
		return proposal{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	// A leader that was stopped keeps its connections; do not sit it out.
	defer c.leaders.add(func(now string) {
		if now != "" && now != leader {
			cancel()
		}
	})()
	var out proposal
	err = c.post(ctx, leader, "/metadata/propose", bytes.NewReader(body), &out)
	if errors.Is(err, errNoAnswer) {
		c.cfg.Client.CloseIdleConnections() // the next attempt dials afresh
	}
	return out, err
}

func encode(cmd *wire.Command) ([]byte, error) {
	b, err := proto.Marshal(cmd)
	switch {
	case err != nil: // a text is not UTF-8
		return nil, oci.ErrManifestInvalid.Wrap(err)
	case len(b) > maxCommand:
		return nil, oci.ErrManifestTooLarge.Because("with its lists it does not fit into an entry")
	}
	return b, nil
}

// proposeHere appends cmd to the log if this node leads, and waits until it
// is applied.
func (c *Catalog) proposeHere(ctx context.Context, cmd *wire.Command) (proposal, error) {
	if have := c.state.level(); have != 0 && needs(cmd) > have { // 0: nobody is a member yet
		return proposal{}, oci.ErrUnsupported.Because("not every member of the mesh runs a version that knows this operation yet")
	}
	if c.raft.State() != raft.Leader {
		return proposal{}, errNotLeader.WithDetail(c.leader())
	}
	if m := cmd.GetMember(); m.GetRemoved() {
		if err := c.mayBury(m.Id); err != nil {
			return proposal{}, err
		}
	}
	cmd.Now = c.cfg.Now().UnixNano()
	data, err := encode(cmd)
	if err != nil {
		return proposal{}, err
	}
	c.queued.Add(1)
	if c.restoring.Load() { // looked at after queued was counted, and set before that is waited for
		c.queued.Add(-1)
		return proposal{}, oci.ErrUnavailable.Because("a backup is being restored")
	}
	c.proposals.Add(1)
	var f raft.ApplyFuture
	err = c.await(ctx, func() raft.Future {
		f = c.raft.Apply(data, enqueueTime)
		f.Error() //nolint:errcheck // await asks again
		if c.queued.Add(-1) == 0 {
			wake(c.pulses)
		}
		return f
	})
	if err != nil {
		return proposal{}, refused(err)
	}
	res, ok := f.Response().(*applyResult)
	if !ok {
		return proposal{}, oci.ErrUnavailable.Because("the leader could not apply the write")
	}
	out := proposal{Index: f.Index(), Size: res.size}
	if res.err != nil {
		out.Err = oci.EncodeError(res.err)
	}
	return out, nil
}

// needs is the feature level that every member must have before cmd may be
// proposed, since one that does not know an operation stops.
func needs(cmd *wire.Command) uint32 {
	switch op := cmd.Op.(type) {
	case *wire.Command_Expire, *wire.Command_Lost, *wire.Command_Standing, *wire.Command_Policy, *wire.Command_Recover:
		return levelHealing
	case *wire.Command_Settings:
		return levelSettings
	case *wire.Command_Manifest:
		if len(op.Manifest.ImmutableTags) > 0 { // one that does not know them would move the tag
			return levelSettings
		}
	case *wire.Command_Unmanifest:
		if op.Unmanifest.Tags != nil { // nor would it look at these
			return levelSettings
		}
	}
	return 1
}

// refused translates raft's errors. Those that say for certain that the entry
// was not appended become errNotLeader, all others leave a doubt.
func refused(err error) error {
	for _, sure := range []error{raft.ErrNotLeader, raft.ErrEnqueueTimeout, raft.ErrLeadershipTransferInProgress} {
		if errors.Is(err, sure) {
			return errNotLeader
		}
	}
	return oci.ErrUnavailable.Because("the leader did not finish the write").Wrap(err)
}

// await asks raft for something and waits for the answer, or for ctx. Raft's
// futures know no context, so each is waited for by a goroutine of its own;
// Close waits for all of them before it shuts raft down (see drain). ask may
// block too.
func (c *Catalog) await(ctx context.Context, ask func() raft.Future) error {
	answer := make(chan error, 1)
	c.futures.Go(func() { answer <- ask().Error() })
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// leader returns the UUID of the leader that raft knows of, or "".
func (c *Catalog) leader() string {
	_, id := c.raft.LeaderWithID()
	return string(id)
}

// servers returns raft's latest configuration: voters and others, by UUID.
func (c *Catalog) servers() (voters, others []string) {
	for _, s := range c.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, string(s.ID))
		} else {
			others = append(others, string(s.ID))
		}
	}
	return voters, others
}

func (c *Catalog) soleVoter() bool {
	voters, _ := c.servers()
	return len(voters) == 1 && voters[0] == c.cfg.ID
}

// pulse lets followers hear of commits. They learn of one only with raft's
// next message, which on an idle mesh comes after CommitTimeout; a Barrier,
// appended when a commit leaves nothing queued behind which it could ride, is
// that message. Nobody waits for it, and one at a time is enough: what commits
// meanwhile asks for another.
func (c *Catalog) pulse(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.pulses:
		}
		voters, others := c.servers()
		if c.raft.State() != raft.Leader || len(voters)+len(others) < 2 || c.queued.Load() > 0 {
			continue
		}
		// A failure means that this node leads no more; the next leader pulses.
		_ = c.await(ctx, c.barrier)
	}
}

// nudge appends a Barrier whatever else is under way.
func (c *Catalog) nudge() {
	c.tasks.start(func(ctx context.Context) {
		if c.raft.State() == raft.Leader {
			_ = c.await(ctx, c.barrier) // as in pulse
		}
	})
}

// welcome makes what a new leader found in its log known to all: it commits an
// entry of its own term, which raft does by itself, and only once that is
// committed can a further message tell the followers so.
func (c *Catalog) welcome(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case leads := <-c.raft.LeaderCh():
			if leads && c.await(ctx, c.barrier) == nil {
				wake(c.pulses)
			}
		}
	}
}

func (c *Catalog) barrier() raft.Future { return c.raft.Barrier(enqueueTime) }
