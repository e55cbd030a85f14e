package metadata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/flotilla-registry/flotilla/api/oci"
)

// Catalog is this node's replica of what names mean, and its part in agreeing
// on it. Open one per process; its methods may be called at any time from any
// goroutine.
type Catalog struct {
	cfg    Config
	bounds bounds
	log    *slog.Logger

	// Who uses what: tasks and callers use raft, raft uses logs, state and
	// streams. Close goes the other way round.
	state   *state
	logs    *logStore
	snaps   *snapshotStore
	streams *streams
	trans   *transport
	raft    *raft.Raft
	tasks   *tasks

	futures sync.WaitGroup // goroutines that wait for raft's answers
	leaders watchers

	queued    atomic.Int64  // proposals that raft has not answered yet
	proposals atomic.Uint64 // ever
	pulses    chan struct{} // capacity 1: a Barrier is due
	roster    chan struct{} // capacity 1: members or settings changed
	voting    chan struct{} // capacity 1: the voters want a look

	changing  sync.Mutex  // held while raft's configuration changes, or the state as a whole
	leaving   leaving     // members that are to lose their vote
	restoring atomic.Bool // a backup takes the state's place: no proposals
	told      []string    // members, when streams were last ended for some; tellMembers'

	asked  atomic.Uint64   // rounds, ever
	asking rounds[reading] // this node's reads -> leader
	proofs rounds[uint64]  // leader -> voters
	terms  struct {
		sync.Mutex
		of map[string]*rounds[uint64] // leader -> one voter
	}
	proof proof

	expiry struct {
		sync.Mutex        // held during a pass
		next       []byte // where the next pass goes on; nil is the beginning
	}

	opened time.Time
	once   sync.Once
	ended  error // of Close
}

// bounds of the raft log; tests have smaller ones.
type bounds struct {
	trailing  uint64 // entries kept behind a snapshot
	threshold uint64 // entries that make one due
	bytes     int    // of entries, all in all
	segment   int    // bytes of one of the log's files, allocated whole
	expire    int    // keys that one pass of Expire looks at; the next goes on from there
}

var errClosed = oci.ErrUnavailable.Because("this node is stopping")

// rpcTimeout bounds one call of raft's transport; snapshots get more by their size.
const rpcTimeout = 10 * time.Second

// Open starts this node's part in the catalogue: it recovers what Dir holds and
// takes part from then on. It waits for no leader. With an empty Dir the node
// belongs to no mesh until Found makes one, or the leader of one sends its log.
func Open(cfg Config) (*Catalog, error) {
	return open(cfg, usualBounds())
}

func usualBounds() bounds {
	return bounds{trailing: 20480, threshold: 8192, bytes: 256 << 20, segment: 32 << 20, expire: 250_000}
}

func open(cfg Config, b bounds) (*Catalog, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.TagReads == "" {
		cfg.TagReads = Linearizable
	}
	if cfg.OutAfter == 0 {
		cfg.OutAfter = 15 * time.Minute
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Timing = cfg.Timing.withDefaults()
	c := &Catalog{
		cfg: cfg, bounds: b, log: cfg.Log.With("part", "metadata"), tasks: newTasks(), opened: time.Now(),
		pulses: make(chan struct{}, 1), roster: make(chan struct{}, 1), voting: make(chan struct{}, 1),
	}
	c.asking = rounds[reading]{own: c.tasks, time: cfg.Timing.Proof, run: c.askLeader}
	c.proofs = rounds[uint64]{own: c.tasks, time: cfg.Timing.Proof, run: c.proveLead}
	c.terms.of = make(map[string]*rounds[uint64])
	c.streams = newStreams(cfg.ID, cfg.Listener, c.dial)
	err := c.start()
	if err == nil {
		return c, nil
	}
	c.Close()
	return nil, fmt.Errorf("open catalogue: %w", err)
}

func (c *Catalog) start() error {
	var once sync.Once
	fatal := func(err error) {
		once.Do(func() {
			c.log.Error("the catalogue cannot go on", "error", err)
			c.cfg.Fatal(err)
		})
	}
	snaps, err := c.openStores(fatal)
	if err != nil {
		return err
	}
	c.snaps = snaps
	if err := c.startRaft(snaps); err != nil {
		return err
	}
	c.startTasks()
	if c.soleVoter() {
		if err := c.elect(); err != nil {
			return err
		}
	}
	c.tellMembers()
	c.tasks.start(c.tellRoster)
	return nil
}

func (c *Catalog) raftConfig(log raftLog) *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(c.cfg.ID)
	conf.HeartbeatTimeout = c.cfg.Timing.Election
	conf.ElectionTimeout = c.cfg.Timing.Election
	conf.LeaderLeaseTimeout = c.cfg.Timing.Election / 2
	conf.CommitTimeout = c.cfg.Timing.Commit // followers learn of commits by Barriers: propose.go
	conf.MaxAppendEntries = 64
	conf.BatchApplyCh = true
	conf.TrailingLogs = c.bounds.trailing
	conf.SnapshotThreshold = c.bounds.threshold
	conf.SnapshotInterval = 120 * time.Second
	conf.ShutdownOnRemove = false
	conf.NoLegacyTelemetry = true
	conf.Logger = log
	return conf
}

func (c *Catalog) startRaft(snaps *snapshotStore) error {
	log := newRaftLog(c.log)
	conf := c.raftConfig(log)
	restore, err := snaps.restoreAtStart()
	if err != nil {
		return fmt.Errorf("compare state and snapshots: %w", err)
	}
	conf.NoSnapshotRestoreOnStart = !restore
	c.trans = &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Logger: log, Stream: c.streams, MaxPool: 3, Timeout: rpcTimeout, MsgpackUseNewTimeFormat: true,
			// No pipelines: each send in one takes MaxAppendEntries at most and
			// leaves the rest, or what breaks, to CommitTimeout.
			MaxRPCsInFlight: 1,
		}),
		self: c.cfg.ID, heartbeats: newHeartbeats(c.cfg.Timing.Election), leaders: &c.leaders, nudge: c.nudge, done: c.streams.done,
		beats: make(map[raft.ServerID]chan struct{}), removed: make(map[raft.ServerID]bool),
	}
	var own atomic.Pointer[raft.Raft] // nil until watchers are told
	c.trans.leads = func(term uint64) bool {
		r := own.Load()
		if r == nil {
			return false
		}
		// Not its state, which changes after watchers were told.
		_, leader := r.LeaderWithID()
		return string(leader) == c.cfg.ID && r.CurrentTerm() == term
	}
	// What was just written is read again by each replication and by apply.
	cached, err := raft.NewLogCache(64, c.logs)
	if err != nil {
		return fmt.Errorf("cache raft log: %w", err)
	}
	if c.raft, err = raft.NewRaft(conf, c.state, cached, c.logs, snaps, c.trans); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	c.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		switch data := o.Data.(type) {
		case raft.LeaderObservation:
			c.leaders.told(string(data.LeaderID))
			c.tellLeader(string(data.LeaderID))
			wake(c.voting)
		case raft.ResumedHeartbeatObservation:
			c.nudge() // a member is back, and cannot know what is committed
		case raft.PeerObservation:
			c.trans.peer(data.Peer.ID, data.Removed)
		}
		return false
	}))
	own.Store(c.raft)
	return nil
}

func (c *Catalog) tellLeader(id string) {
	switch id {
	case "":
		c.log.Info("the mesh has no leader that this node knows of")
	case c.cfg.ID:
		c.log.Info("this node leads the mesh")
	default:
		c.log.Info("another node leads the mesh", "leader", id)
	}
}

func (c *Catalog) startTasks() {
	c.tasks.start(func(ctx context.Context) {
		t := time.NewTicker(time.Second)
		defer t.Stop()
		c.logs.watch(ctx, t.C)
	})
	c.tasks.start(c.boundLog)
	c.tasks.start(c.pulse)
	c.tasks.start(c.welcome)
	c.tasks.start(c.tendVoters)
	c.tasks.start(c.becomeReady)
}

func (c *Catalog) dial(id string, timeout time.Duration) (net.Conn, error) {
	ctx, leave, err := c.tasks.enter(context.Background())
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.cfg.Dial(ctx, id)
}

// elect makes the only voter in its own log leader at once: nobody else could
// be, so waiting for an election timeout serves nothing.
func (c *Catalog) elect() error {
	id := c.cfg.ID
	req := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte(id),
	}}
	if err := c.trans.TimeoutNow(raft.ServerID(id), raft.ServerAddress(id), req, &raft.TimeoutNowResponse{}); err != nil {
		return fmt.Errorf("elect the only voter: %w", err)
	}
	return nil
}

// Found makes a mesh of which self, this node, is the only voter, and returns
// once the log says so. It may be repeated, as after a crash on the way: a log
// that has voters but no mesh gets its first entry, and one that has a mesh
// stays as it is. A node that might belong to a mesh already never calls it.
func (c *Catalog) Found(ctx context.Context, mesh Cluster, self Member) error {
	ctx, leave, err := c.tasks.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := c.found(ctx, mesh, self); err != nil {
		return fmt.Errorf("found the mesh: %w", err)
	}
	return nil
}

func (c *Catalog) found(ctx context.Context, mesh Cluster, self Member) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	voter := raft.Server{ID: raft.ServerID(c.cfg.ID), Address: raft.ServerAddress(c.cfg.ID)}
	err := c.await(ctx, func() raft.Future {
		return c.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{voter}})
	})
	switch {
	case err == nil:
		err = c.elect()
	case errors.Is(err, raft.ErrCantBootstrap): // the log has voters already
		err = nil
	}
	if err != nil {
		return err
	}
	if err := c.retryProof(ctx); err != nil {
		return err
	}
	if c.state.cluster().ID != "" {
		return nil
	}
	_, err = c.write(ctx, memberOp(self, &mesh))
	return err
}

// tellMembers tells the node, which from then on greets nobody who is not among
// them; only after that are streams ended that such a one has open.
func (c *Catalog) tellMembers() {
	members := c.state.members()
	c.trans.heartbeats.place(c.cfg.ID, members)
	c.cfg.OnMembers(members, c.state.cluster())
	c.endStreamsOfGone(members)
}

func (c *Catalog) tellRoster(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.roster:
			c.tellMembers()
		}
	}
}

// Close ends this node's part and returns when nothing of it runs any more.
// It hands over nothing: see StepDown.
func (c *Catalog) Close() error {
	c.once.Do(func() { c.ended = c.close() })
	return c.ended
}

func (c *Catalog) close() error {
	c.tasks.close()
	if c.raft != nil {
		c.drain()
		shut := c.raft.Shutdown()
		c.endStreams() // calls under way would hold raft's goroutines for up to rpcTimeout
		if err := shut.Error(); err != nil {
			c.log.Warn("raft did not end well", "error", err)
		}
	}
	c.endStreams()
	c.streams.wait()
	var errs []error
	if c.state != nil {
		errs = append(errs, c.state.close())
	}
	if c.logs != nil {
		errs = append(errs, c.logs.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close catalogue: %w", err)
	}
	return nil
}

// drain waits for raft's answers to all that was asked of it: once it is shut
// down it may keep some for ever, and the goroutines that wait for them. A
// leader without a quorum answers when its lease ends; one whose disk hangs
// never does, and the process is then about to end.
func (c *Catalog) drain() {
	answered := make(chan struct{})
	go func() {
		c.futures.Wait()
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(c.cfg.Timing.Election + 5*time.Second):
		c.log.Warn("raft left calls unanswered")
	}
}

func (c *Catalog) endStreams() {
	if c.trans != nil {
		c.trans.Close()
		c.trans.CloseStreams()
	}
	c.streams.Close()
}
