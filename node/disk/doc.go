// Package disk keeps the bytes of one machine: content-addressed, checked
// before they are named and durable before they are acknowledged. It knows no
// network; whoever lacks a blob hands it a source to read from.
//
// Everything lives in one folder, on one file system:
//
//	blobs/<algorithm>/<first two hex>/<hex>  whole, verified, never changed
//	uploads/<id>                             the bytes of an open upload
//	uploads/<id>.json                        its session, or its finished mark
//	fills/                                   all that does not outlive the process
//	quarantine/<algorithm>-<hex>             damaged files, out of service
//	scrub.cursor                             how far a round of Scrub is
//
// A blob arrives in one of three ways: in one piece (Put), as an upload of one
// or more chunks (Start, Append, Finish), or from a source while readers
// already follow it (Fill). All three hash while they write and end in the same
// commit: sync the file, rename it, sync the folder (commit.go). A name under
// blobs/ therefore always stands for complete and verified bytes; after a power
// cut it may be missing, never wrong. Files and folders there that no digest
// names are not the Store's: they are neither served nor touched.
//
// # How a blob goes
//
// Two things take a name away. Remove does where nobody used the blob since a
// cutoff: commits, Touch, Fill and a repeated Finish mark it used, reads do once
// an hour. Decision and deed are one step under the blob's lock, so a blob does
// not go behind the back of whoever just stored or touched it. A power cut may
// bring it back, whole as it was.
//
// Scrub and Check do where a file is no longer what was stored. It goes into
// quarantine, for good: the folder is synced. From then on the blob is absent
// like any other, and Config.Bad is told, so that a copy is fetched; readers
// who have the file open are not cut off, as their clients and peers verify
// what they get. Files that cannot be read are counted apart, and stay while
// nothing else can be read either: a disk that fails as a whole is for its
// owner to replace, not for Scrub to empty.
//
// Whether a name is durable decides whether it counts: Walk, Has and Touch wait
// for a commit under way, and sync a folder once for names from before Open.
//
// # Reading order
//
// store.go is the life of a Store and its plain reads and writes; write.go the
// one path by which bytes reach a file; commit.go and sync.go the way to a
// durable name; upload.go and session.go the uploads, at work and across
// restarts; fill.go and follow.go the download that many read while it grows;
// walk.go what is held; remove.go, scrub.go and quarantine.go how it goes;
// watchdog.go the disk that hangs.
// What differs between operating systems is in os_unix.go and os_windows.go.
//
// # Trust in the disk
//
// A failed fsync is never tried again: the kernel may have dropped the very
// pages it failed to write, so that a second call would succeed without them
// (https://wiki.postgresql.org/wiki/Fsync_Errors). The Store then refuses every
// later write and tells its owner, who should end the process. So it does when
// the disk hangs: a sync or a rename lasts ten seconds, and then a small sync
// ten more, or the folder of the blobs is gone. A failed read ends nothing.
//
// A full disk is no failure. Writes that would touch the reserve are refused,
// all else goes on, and they are taken again as soon as there is space.
package disk
