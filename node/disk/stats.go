package disk

import "sync/atomic"

// Stats is what a Store has done since Open, and what it is doing.
type Stats struct {
	BytesWritten  int64 // into files of any kind
	BytesFollowed int64 // read from growing copies; whole files are read without the Store
	BlobsOpened   int64
	BlobsStored   int64 // commits
	BlobsRemoved  int64
	BytesRemoved  int64

	BytesScrubbed   int64 // read again, to see whether they are as they were stored
	BlobsBad        int64 // found with wrong bytes, and no longer served
	BlobsUnreadable int64 // the same of those that the disk could not read
	Quarantined     int64 // files in quarantine, now

	FileSyncs         int64
	FolderSyncs       int64
	FolderSyncsShared int64 // commits that needed none of their own

	FillsStarted    int64
	FillsFailed     int64
	FillsActive     int64
	SourcesReplaced int64 // sources that died or fell silent in a fill
	SourcesLied     int64 // fills whose bytes had another digest
	Followers       int64 // readers of growing copies, open now

	UploadsStarted int64
	UploadsExpired int64
	UploadsOpen    int64
}

// counters are the live figures behind Stats; what runs now is counted from the tables.
type counters struct {
	written, followed, opened, committed      atomic.Int64
	removed, removedBytes                     atomic.Int64
	scrubbed, bad, unreadable, quarantined    atomic.Int64
	fileSyncs, folderSyncs, syncsShared       atomic.Int64
	fillsStarted, fillsFailed, replaced, lied atomic.Int64
	followers                                 atomic.Int64
	uploadsStarted, uploadsExpired            atomic.Int64
}

// Stats returns the figures of now. Each is exact, but they are not taken at
// one instant.
func (s *Store) Stats() Stats {
	st := s.stats.snapshot()
	s.fills.mu.Lock()
	st.FillsActive = int64(len(s.fills.byDigest))
	s.fills.mu.Unlock()
	s.ups.mu.Lock()
	st.UploadsOpen = int64(s.ups.open)
	s.ups.mu.Unlock()
	return st
}

func (c *counters) snapshot() Stats {
	return Stats{
		BytesWritten:      c.written.Load(),
		BytesFollowed:     c.followed.Load(),
		BlobsOpened:       c.opened.Load(),
		BlobsStored:       c.committed.Load(),
		BlobsRemoved:      c.removed.Load(),
		BytesRemoved:      c.removedBytes.Load(),
		BytesScrubbed:     c.scrubbed.Load(),
		BlobsBad:          c.bad.Load(),
		BlobsUnreadable:   c.unreadable.Load(),
		Quarantined:       c.quarantined.Load(),
		FileSyncs:         c.fileSyncs.Load(),
		FolderSyncs:       c.folderSyncs.Load(),
		FolderSyncsShared: c.syncsShared.Load(),
		FillsStarted:      c.fillsStarted.Load(),
		FillsFailed:       c.fillsFailed.Load(),
		SourcesReplaced:   c.replaced.Load(),
		SourcesLied:       c.lied.Load(),
		Followers:         c.followers.Load(),
		UploadsStarted:    c.uploadsStarted.Load(),
		UploadsExpired:    c.uploadsExpired.Load(),
	}
}
