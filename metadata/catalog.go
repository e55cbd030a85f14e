package metadata

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Config is what a Catalog needs from its node. All fields are required unless
// said otherwise.
type Config struct {
	Dir string // raft log, snapshots and state; created where absent
	ID  string // this node's UUID
	// Epoch of the mesh that this node names when it greets others; 0 while it
	// belongs to none. Open refuses a catalogue of another epoch: with it the
	// node would mix what a recovery has parted.
	Epoch Epoch

	// Listener yields raft streams of proven members of this mesh; it is the
	// Catalog's from the call of Open on, also where Open fails. Dial opens
	// such a stream to the member with this UUID, by whatever address it has
	// today.
	Listener net.Listener
	Dial     func(ctx context.Context, id string) (net.Conn, error)
	// Client sends requests to https://<member UUID>/..., proven both ways.
	Client *http.Client
	// Alive returns the UUIDs of members that gossip shows alive, this node included.
	Alive func() []string
	// OnMembers is told the members and settings after each change, from one
	// goroutine, and once before Open returns. It must not call the Catalog.
	OnMembers func([]Member, Cluster)
	// OnNamed, where not nil, is told each manifest that is stored or given a
	// tag, once this replica has it; and "" where settings, or more than can be
	// told, may have changed. It must neither block nor call the Catalog.
	OnNamed func(repo string, d digest.Digest)
	// Fatal is called at most once, when the disk hangs or fails a sync, or
	// the log holds what this version does not know: the process must end. It
	// must not call the Catalog, whose Close may wait for that disk.
	Fatal func(error)
	// Now is the clock that log time is made of; nil is time.Now.
	Now func() time.Time

	TagReads TagReads // "" is Linearizable
	// OutAfter is how long a member may be gone before the leader puts it out
	// of the ring, so that others hold what it did; 0 is 15 minutes.
	OutAfter time.Duration
	Timing   Timing
	Log      *slog.Logger // nil logs nothing
}

// Timing is for tests that cannot wait for a real mesh's patience. Zero fields
// take the defaults, which every node of a mesh should share.
type Timing struct {
	Election time.Duration // 1.5 s: silence of the leader before others stand; its own lease is half
	Commit   time.Duration // 5 s: raft's rounds on an idle mesh
	Proof    time.Duration // 1 s: how long a read waits to be proven current, and then the next are not made to
	Stable   time.Duration // 2 s: how long a node must be there, or gone, before voters change, or it is taken into the ring
	Pair     time.Duration // 10 s: how long an even number of voters may last
	Tick     time.Duration // 1 s: how often the leader looks at the voters
	LinkAge  time.Duration // 24 h: a link that is not used may expire then; half of it hides it from HEAD
}

func (t Timing) withDefaults() Timing {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Election, 1500 * time.Millisecond},
		{&t.Commit, 5 * time.Second},
		{&t.Proof, time.Second},
		{&t.Stable, 2 * time.Second},
		{&t.Pair, 10 * time.Second},
		{&t.Tick, time.Second},
		{&t.LinkAge, linkAge},
	} {
		if *f.field == 0 {
			*f.field = f.value
		}
	}
	return t
}

// TagReads says how reads by tag, and lists, are answered.
type TagReads string

// The three ways of --tag-reads.
const (
	Linearizable TagReads = "linearizable" // proven current; where no proof is to be had, local state that says how old it may be
	Strict       TagReads = "strict"       // proven current, or ErrUnavailable
	Local        TagReads = "local"        // at once, as old as this replica
)

// Cluster is the identity and the mesh-wide settings: the founder's, and the
// policy.
type Cluster struct {
	ID          string // UUID
	Epoch       Epoch  // changed by disaster recovery, so that an old majority cannot return
	Replicas    int    // copies of each blob
	AllowSparse bool   // images may be pushed before their blobs

	UntaggedAfter time.Duration // see Policy
}

// Policy is what the mesh does with names by itself.
type Policy struct {
	UntaggedAfter time.Duration // a manifest without a tag may expire after this; 0 keeps it
}

// Member is a node as the log knows it.
type Member struct {
	ID      string            // UUID
	Name    string            // unique in the mesh
	Key     ed25519.PublicKey // pins the UUID to its holder
	Zone    string
	Weight  uint32 // share of the blobs it owns, in GiB; 0 owns none
	Level   uint32 // highest feature level that it understands
	Address string // host:port of its peer port when it last announced itself: a hint

	// Why it owns no blobs, whatever its weight. A member's own announcement
	// changes neither.
	Out      bool // it was gone for Config.OutAfter, and is not back yet
	Draining bool // somebody wants it to leave: see Drain
}

// Freshness tells how far an answer may lag behind the mesh. The zero value is
// a linearizable (or immutable) answer.
type Freshness struct {
	Degraded bool
	Age      time.Duration // upper bound, where Degraded; 0 if unknown
}

// Manifest is a stored manifest. Body is nil where the bytes are placed as a
// blob under Digest; it is shared, so nobody may change it. Stale, of one read
// by digest, says that by the policy it may expire soon unless something comes
// to keep it: HEAD answers 404, so that clients push it again before they push
// what names it, while GET still serves it.
type Manifest struct {
	Freshness
	Digest    digest.Digest
	MediaType string
	Size      int64
	Body      []byte
	Stale     bool
}

// Page asks for at most N items after Last, in byte order; N < 0 asks for as
// many as the catalogue gives at once.
type Page struct {
	Last string
	N    int
}

// List is one page of an answer; More says that another page follows.
type List[T any] struct {
	Freshness
	Items []T
	More  bool
}

// Put is a manifest to be stored under its digest and tags in one entry.
type Put struct {
	Repo     string
	Tags     []string
	Manifest oci.Manifest
	Body     []byte // nil when larger than InlineLimit and placed as a blob before

	// LogTime from before Body was placed, where it was.
	Placed time.Time

	// Of Tags, those that may not move: one that names another manifest already
	// keeps all of it from being stored.
	ImmutableTags []string
}

// Status is a snapshot of the Raft side for people and metrics.
type Status struct {
	State       string // leader, follower, candidate, shutdown
	Leader      string // UUID, or "" while none is known
	Term        uint64
	Commit      uint64
	Applied     uint64
	LastContact time.Duration // since the leader was last heard; 0 on the leader
	Voters      []string      // UUIDs
	Replicas    []string      // UUIDs of the non-voters
	ReadRounds  uint64        // leader rounds this node asked for, ever
	Proposals   uint64        // entries this node proposed as leader, ever
}

// Blob is a link of a repository on a blob. Stale says that the link has not
// been used for half of Timing.LinkAge: HEAD answers 404, so that clients offer the blob
// again, while GET still serves it.
type Blob struct {
	Size  int64
	Stale bool
}

// Cluster returns the mesh's identity and what holds for all of it, zero before
// this node has heard of it.
func (c *Catalog) Cluster() Cluster { return c.state.cluster() }

// Members returns every member, alive or not, by UUID.
func (c *Catalog) Members() []Member { return c.state.members() }

// Status returns where this node's part of raft stands.
func (c *Catalog) Status() Status {
	s := Status{
		State:      strings.ToLower(c.raft.State().String()),
		Leader:     c.leader(),
		Term:       c.raft.CurrentTerm(),
		Commit:     c.raft.CommitIndex(),
		Applied:    c.raft.AppliedIndex(),
		ReadRounds: c.asked.Load(),
		Proposals:  c.proposals.Load(),
	}
	s.Voters, s.Replicas = c.servers()
	if s.State != "leader" {
		heard := c.raft.LastContact()
		if heard.IsZero() {
			heard = c.opened
		}
		s.LastContact = time.Since(heard)
	}
	return s
}

// StepDown hands leadership to another voter that seems alive, if this node
// leads and there is one: before a planned stop, so that the others need not
// wait for an election.
func (c *Catalog) StepDown(ctx context.Context) error {
	ctx, leave, err := c.tasks.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	alive := c.cfg.Alive()
	voters, _ := c.servers()
	var errs []error
	for _, id := range voters {
		if c.raft.State() != raft.Leader {
			return nil
		}
		if id == c.cfg.ID || !slices.Contains(alive, id) {
			continue
		}
		err := c.handOver(ctx, id)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// handOver makes the voter id lead.
func (c *Catalog) handOver(ctx context.Context, id string) error {
	return c.reconfigure(ctx, "hand over leadership", id, func() raft.Future {
		return c.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(id))
	})
}
