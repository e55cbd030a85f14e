package metadata

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata/wire"
)

const (
	// commandVersion is the highest Command.version that this code applies.
	commandVersion = 1

	// maxEntry bounds an entry, and with it every record: twice a manifest
	// of the largest size, whose names and annotations may be copies of most
	// of it. A larger one is refused; a proposer sends none.
	maxEntry = 8 << 20

	// Receipts are kept for requestAge of log time at least, but never more
	// than maxReceipts; the oldest go first. Each command drops at most
	// dropExpired of those that are too old: faster than new ones come, and yet
	// a leader whose clock is far ahead does not forget all requests at once.
	requestAge  = int64(15 * time.Minute)
	maxReceipts = 65_536
	dropExpired = 2
)

// Apply applies one entry; see ApplyBatch.
func (s *state) Apply(l *raft.Log) any { return s.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch applies entries in their order, all in one write together with
// the record of how far the state has come. The result of a command is an
// *applyResult. What a command comes to depends on the log alone: on no clock,
// no disk, no order of a map, and not on where batches begin and end.
func (s *state) ApplyBatch(logs []*raft.Log) []any {
	results := make([]any, len(logs))
	if err := s.applyBatch(logs, results); err != nil {
		if !errors.Is(err, errStateClosed) {
			s.fatal(err)
		}
		for i := range results {
			if results[i] == nil {
				results[i] = &applyResult{err: oci.ErrUnavailable.Wrap(err)}
			}
		}
	}
	return results
}

// applyBatch fills results. On an error it leaves nil those of entries that
// were not applied.
func (s *state) applyBatch(logs []*raft.Log, results []any) error {
	if err := s.failure(); err != nil {
		return err
	}
	db, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.mu.RUnlock()

	t := s.begin(db)
	defer t.b.Close()
	stop := error(nil)
	for i, l := range logs {
		cmd, err := t.next(l)
		if err != nil { // not understood: what came before it stands
			stop = fmt.Errorf("apply entry %d: %w", l.Index, err)
			break
		}
		if cmd == nil {
			results[i] = &applyResult{}
			continue
		}
		o, err := t.apply(l, cmd)
		if err != nil { // not decided, perhaps half written: nothing of the batch stands
			clear(results)
			return fmt.Errorf("apply entry %d: %w", l.Index, err)
		}
		results[i] = o.result()
	}
	if err := s.commit(db, t); err != nil {
		clear(results)
		return err
	}
	return stop
}

// commit writes what t holds and makes it known.
func (s *state) commit(db *pebble.DB, t *tx) error {
	if t.at == s.at {
		return nil
	}
	if err := t.b.Set([]byte{keyProgress}, t.at.encode(), nil); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	durable := pebble.NoSync
	if t.membersChanged {
		durable = pebble.Sync
	}
	s.hot.changing(t.b)
	err := commitBatch(t.b, durable)
	s.hot.changed()
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	s.at, s.settingSums = t.at, t.settings
	if t.settingsChanged {
		s.settingsVersion.Store(t.at.index)
	}
	if t.membersChanged {
		r, err := loadRoster(db)
		if err != nil {
			return fmt.Errorf("read members: %w", err)
		}
		s.roster.Store(r)
	}
	s.publish()
	s.tellNamed(t.named, t.settingsChanged)
	if t.membersChanged {
		s.membersChanged()
	}
	return nil
}

// commitBatch makes an error of pebble's panic where it cannot write its WAL, as
// on a disk that is full to the last byte. Whether the batch stands is not known
// then, and pebble is good for nothing more.
func commitBatch(b *pebble.Batch, o *pebble.WriteOptions) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("pebble: %v", p)
		}
	}()
	return b.Commit(o)
}

// tx is a batch of entries being applied: later entries see what earlier ones
// wrote.
type tx struct {
	b              *pebble.Batch
	at             progress
	receipts       *receiptQueue
	cluster        Cluster
	level          uint32 // that every member has, as of the entry being applied
	membersChanged bool

	settings        settingSums
	settingsChanged bool

	named []named // manifests that were stored, or given a tag
}

type named struct{ repo, digest string }

// begin starts a batch; in raft's goroutine, or without raft.
func (s *state) begin(db *pebble.DB) *tx {
	return &tx{b: db.NewIndexedBatch(), at: s.at, receipts: &s.receipts, cluster: s.cluster(), level: s.level(), settings: s.settingSums}
}

// next returns the command of the entry that is next, or nil where there is
// nothing to apply: the entry is raft's own, or raft sends it again after a
// restart and the state already holds it. Nobody waits for the result of such
// a one.
func (t *tx) next(l *raft.Log) (*wire.Command, error) {
	if l.Type != raft.LogCommand || l.Index <= t.at.index {
		return nil, nil
	}
	cmd := new(wire.Command)
	if err := proto.Unmarshal(l.Data, cmd); err != nil {
		return nil, fmt.Errorf("%w (%v)", errUnknownOp, err)
	}
	if cmd.Version == 0 || cmd.Version > commandVersion {
		return nil, fmt.Errorf("%w (version %d)", errUnknownOp, cmd.Version)
	}
	if cmd.Op == nil {
		return nil, errUnknownOp
	}
	return cmd, nil
}

// apply applies a command, unless its request was applied before: then the
// answer is the first one again.
func (t *tx) apply(l *raft.Log, cmd *wire.Command) (decision, error) {
	t.at.index, t.at.term = l.Index, l.Term
	t.at.now = max(t.at.now, cmd.Now) // leaders' clocks differ; log time does not go back
	id := cmd.RequestId
	switch {
	case len(l.Data) > maxEntry:
		return decision{verdict: tooLarge}, nil
	case id == "":
		if err := t.forget(0); err != nil {
			return decision{}, err
		}
		return t.carryOut(cmd)
	case !validName(id, maxID):
		return decision{verdict: badRequest}, nil
	}
	var r receipt
	seen, err := get(t.b, receiptKey(id), func(v []byte) (err error) {
		r, err = decodeReceipt(v)
		return err
	})
	if seen || err != nil {
		return r.decision, err
	}
	o, err := t.carryOut(cmd)
	if err != nil {
		return o, err
	}
	if err := t.forget(1); err != nil {
		return o, err
	}
	t.receipts.push(request{id: id, at: t.at.now})
	r = receipt{index: l.Index, at: t.at.now, decision: o}
	return o, t.b.Set(receiptKey(id), r.encode(), nil)
}

// forget drops a few receipts that are too old, and as many more as room for
// new ones needs. The request at hand has been looked for before.
func (t *tx) forget(room int) error {
	q := t.receipts
	for n := 0; q.len() > 0; n++ {
		expired := n < dropExpired && q.oldest().at < t.at.now-requestAge
		if !expired && q.len()+room <= maxReceipts {
			return nil
		}
		if err := t.b.Delete(receiptKey(q.oldest().id), nil); err != nil {
			return err
		}
		q.pop()
	}
	return nil
}

// carryOut applies a command's operation, and what follows where it raised the
// level of the mesh.
func (t *tx) carryOut(cmd *wire.Command) (decision, error) {
	o, err := t.decide(cmd)
	if err == nil && t.membersChanged {
		err = t.relevel()
	}
	return o, err
}

// decide applies a command's operation. An error says that the database
// failed; a refusal is an decision, and has written nothing.
func (t *tx) decide(cmd *wire.Command) (decision, error) {
	switch op := cmd.Op.(type) {
	case *wire.Command_Link:
		return t.link(op.Link)
	case *wire.Command_Unlink:
		return t.unlink(op.Unlink)
	case *wire.Command_Manifest:
		o, err := t.manifest(op.Manifest)
		if err == nil && o.verdict == done {
			t.named = append(t.named, named{op.Manifest.Repo, op.Manifest.Digest})
		}
		return o, err
	case *wire.Command_Untag:
		return t.untag(op.Untag)
	case *wire.Command_Unmanifest:
		return t.unmanifest(op.Unmanifest)
	case *wire.Command_Member:
		return t.member(op.Member)
	case *wire.Command_Standing:
		return t.standing(op.Standing)
	case *wire.Command_Recover:
		return t.recover(op.Recover)
	case *wire.Command_Expire:
		return t.expire(op.Expire)
	case *wire.Command_Lost:
		return t.lost(op.Lost)
	case *wire.Command_Policy:
		return t.policy(op.Policy)
	case *wire.Command_Settings:
		return t.change(op.Settings)
	}
	return decision{}, errUnknownOp
}

// request is a receipt as the queue knows it.
type request struct {
	id string
	at int64 // log time
}

// receiptQueue holds the requests that have a receipt, oldest first. It is
// rebuilt from the receipts at start and costs a few megabytes at the most.
type receiptQueue struct {
	requests []request // those before head are gone
	head     int
}

func (q *receiptQueue) len() int        { return len(q.requests) - q.head }
func (q *receiptQueue) oldest() request { return q.requests[q.head] }
func (q *receiptQueue) push(r request)  { q.requests = append(q.requests, r) }

func (q *receiptQueue) pop() {
	q.requests[q.head] = request{}
	q.head++
	if q.head > len(q.requests)/2 {
		q.requests, q.head = slices.Delete(q.requests, 0, q.head), 0
	}
}

func loadReceipts(r pebble.Reader) (q receiptQueue, err error) {
	type entry struct {
		request
		index uint64
	}
	var all []entry
	err = scan(r, []byte{keyReceipt}, func(id, v []byte) (bool, error) {
		r, err := decodeReceipt(v)
		all = append(all, entry{request{string(id), r.at}, r.index})
		return true, err
	})
	slices.SortFunc(all, func(a, b entry) int { return cmp.Compare(a.index, b.index) })
	for _, e := range all {
		q.push(e.request)
	}
	return q, err
}
