package metadata

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// What a recovery would begin with, found out without writing anything: a dry
// run ends there.

// viewState opens a state that stays as it is.
func viewState(dir string, log *slog.Logger, fatal func(error)) (*state, error) {
	s := &state{dir: dir, log: log, onFatal: fatal, cache: pebble.NewCache(8 << 20), fs: vfs.Default}
	name, err := s.current()
	if err == nil {
		o := s.options()
		o.ReadOnly = true
		s.db, err = pebble.Open(filepath.Join(dir, name), o)
	}
	if err != nil {
		s.cache.Unref()
		return nil, fmt.Errorf("open state: %w", err)
	}
	l, err := load(s.db)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read state: %w", err), s.close())
	}
	s.adopt(l)
	return s, nil
}

// look finds out what the state is once all of the log is applied, without
// writing anything of it.
func (r *recovery) look() (out Recovered, err error) {
	metas, err := r.snaps.metas()
	if err != nil {
		return out, err
	}
	if err := r.findEnd(metas); err != nil {
		return out, err
	}
	t := r.state.begin(r.state.db)
	defer t.b.Close()
	receipts := receiptQueue{requests: slices.Clone(r.state.receipts.requests[r.state.receipts.head:])}
	t.receipts = &receipts
	if len(metas) > 0 && r.state.applied() < metas[0].Applied {
		if err := r.addSnapshot(t, metas[0].ID); err != nil {
			return out, err
		}
	}
	err = r.eachEntry(t.at.index, func(l *raft.Log) error {
		cmd, err := t.next(l)
		if cmd != nil {
			_, err = t.apply(l, cmd)
		}
		return err
	})
	if err != nil {
		return out, err
	}
	roster, err := loadRoster(t.b)
	if err != nil {
		return out, err
	}
	out = Recovered{Cluster: roster.cluster, Index: r.index, Term: r.term, LogTime: time.Unix(0, t.at.now)}
	out.Unfinished = checkRecovered(r.cfg.Dir) != nil
	if out.Voters, err = r.voters(metas); err != nil {
		return out, err
	}
	return out, r.choose(roster, &out)
}

// findEnd finds the last entry.
func (r *recovery) findEnd(metas []snapshotMeta) error {
	end, err := r.logs.LastIndex()
	if err != nil {
		return err
	}
	if len(metas) > 0 {
		r.index, r.term = metas[0].Index, metas[0].Term
	}
	if end > r.index {
		r.index, r.term = end, r.logs.term(end)
	}
	if r.index == 0 {
		return errors.New("this node's log is empty")
	}
	return nil
}

// addSnapshot puts into t what the newest snapshot says of the mesh, where the
// node ended before it took that snapshot in.
func (r *recovery) addSnapshot(t *tx, id string) error {
	_, stream, err := r.snaps.Open(id)
	if err != nil {
		return err
	}
	defer stream.Close()
	if err := t.b.DeleteRange([]byte{keyMember}, []byte{keyMember + 1}, nil); err != nil {
		return err
	}
	d, err := newDecoder(stream)
	for err == nil {
		var k, v []byte
		switch k, v, err = d.next(); {
		case err != nil:
		case k[0] == keyProgress:
			t.at, err = decodeProgress(v)
		case k[0] == keyCluster || k[0] == keyMember:
			err = t.b.Set(k, v, nil)
		}
	}
	if err != io.EOF {
		return err
	}
	return nil
}

// eachEntry calls fn with the entries of the log after the one at index.
func (r *recovery) eachEntry(index uint64, fn func(*raft.Log) error) error {
	first, err := r.logs.FirstIndex()
	if err != nil {
		return err
	}
	last, err := r.logs.LastIndex()
	for i := max(first, index+1); err == nil && first > 0 && i <= last; i++ {
		l := new(raft.Log)
		if err = r.logs.GetLog(i, l); err == nil {
			err = fn(l)
		}
	}
	return err
}

// voters returns who votes by the log.
func (r *recovery) voters(metas []snapshotMeta) ([]string, error) {
	var conf raft.Configuration
	if len(metas) > 0 {
		conf = metas[0].Configuration
	}
	err := r.eachEntry(0, func(l *raft.Log) error {
		if l.Type == raft.LogConfiguration && (len(metas) == 0 || l.Index > metas[0].Index) {
			conf = raft.DecodeConfiguration(l.Data)
		}
		return nil
	})
	var ids []string
	for _, s := range conf.Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids, err
}

// choose parts the members into those who stay and those who are buried.
func (r *recovery) choose(found *roster, out *Recovered) error {
	if found.cluster.ID == "" || !isMember(found.members, r.cfg.ID) {
		return errors.New("this node is no member of a mesh, by all that its folder knows")
	}
	for _, id := range r.cfg.Keep {
		if !isMember(found.members, id) {
			return fmt.Errorf("%s is no member", id)
		}
	}
	for _, m := range found.members {
		if m.ID == r.cfg.ID || slices.Contains(r.cfg.Keep, m.ID) {
			out.Kept = append(out.Kept, m)
		} else {
			out.Buried = append(out.Buried, m)
		}
	}
	return nil
}
