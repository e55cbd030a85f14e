package metadata

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"
)

var _ raft.SnapshotSink = (*snapshotSink)(nil)

// snapshotSink takes one snapshot: by checkpoint, from this node's state, or
// by Write, from the leader. It counts once Close has returned nil.
type snapshotSink struct {
	store *snapshotStore
	dir   string
	meta  snapshotMeta
	ended bool

	made bool     // a checkpoint
	file *os.File // a stream; nil before the first Write
	buf  *bufio.Writer
}

// ID implements raft.SnapshotSink.
func (k *snapshotSink) ID() string { return k.meta.ID }

// checkpoint makes a checkpoint of db, which holds the commands up to applied
// or later. Doing so makes them durable in db too, so that raft may drop them
// from its log.
func (k *snapshotSink) checkpoint(db *pebble.DB, applied uint64) error {
	if err := db.Checkpoint(filepath.Join(k.dir, checkpointDir), pebble.WithFlushedWAL()); err != nil {
		return fmt.Errorf("make checkpoint: %w", err)
	}
	k.made, k.meta.Applied = true, applied
	return nil
}

// Write implements io.Writer.
func (k *snapshotSink) Write(p []byte) (int, error) {
	if k.file == nil {
		f, err := os.OpenFile(filepath.Join(k.dir, streamFile), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return 0, fmt.Errorf("receive snapshot: %w", err)
		}
		k.file, k.buf = f, bufio.NewWriterSize(f, 64<<10)
	}
	n, err := k.buf.Write(p)
	k.meta.Size += int64(n)
	return n, err
}

// Close implements raft.SnapshotSink.
func (k *snapshotSink) Close() error {
	if k.ended {
		return nil
	}
	err := k.finish()
	if err != nil {
		return fmt.Errorf("finish snapshot: %w", errors.Join(err, k.Cancel()))
	}
	k.ended = true
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	k.store.reap()
	return nil
}

func (k *snapshotSink) finish() error {
	switch {
	case k.file != nil:
		if err := k.finishStream(); err != nil {
			return err
		}
	case !k.made:
		return errors.New("nothing was written")
	}
	b, err := json.Marshal(k.meta)
	if err != nil {
		return err
	}
	if err := writeFile(k.dir, metaFile, b); err != nil {
		return err
	}
	if err := os.Rename(k.dir, strings.TrimSuffix(k.dir, tmpSuffix)); err != nil {
		return err
	}
	return syncDir(k.store.dir)
}

// finishStream proves what was received, so that a bad stream never becomes
// the newest snapshot, and makes it durable.
func (k *snapshotSink) finishStream() error {
	if err := k.buf.Flush(); err != nil {
		return err
	}
	if err := k.file.Sync(); err != nil {
		return err
	}
	if _, err := k.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	d, err := newDecoder(k.file)
	if err != nil {
		return err
	}
	if err := k.store.state.admit(d.header); err != nil {
		return err
	}
	k.meta.Applied = d.index
	if err := d.drain(); err != nil {
		return err
	}
	f := k.file
	k.file = nil
	return f.Close()
}

// Cancel implements raft.SnapshotSink.
func (k *snapshotSink) Cancel() error {
	if k.ended {
		return nil
	}
	k.ended = true
	var err error
	if k.file != nil {
		err = k.file.Close()
	}
	return errors.Join(err, os.RemoveAll(k.dir))
}
