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
//
// A blob arrives in one of three ways: in one piece (Put), as an upload of one
// or more chunks (Start, Append, Finish), or from a source while readers
// already follow it (Fill). All three hash while they write and end in the same
// commit: sync the file, rename it, sync the folder (commit.go). A name under
// blobs/ therefore always stands for complete and verified bytes; after a power
// cut it may be missing, never wrong.
//
// # Reading order
//
// store.go is the life of a Store and its plain reads and writes; write.go the
// one path by which bytes reach a file; commit.go and sync.go the way to a
// durable name; upload.go and session.go the uploads, at work and across
// restarts; fill.go and follow.go the download that many read while it grows.
// What differs between operating systems is in os_unix.go and os_windows.go.
//
// # Trust in the disk
//
// A failed fsync is never tried again: the kernel may have dropped the very
// pages it failed to write, so that a second call would succeed without them
// (https://wiki.postgresql.org/wiki/Fsync_Errors). The Store then refuses every
// later write and tells its owner, who should end the process.
package disk
