// Package oci holds the words of the OCI distribution specification: names,
// tags, digests, manifests and errors. It knows no network and no disk, and
// everything else imports it.
//
// What comes from a client passes one of its parsers once, at the door, and is
// trusted from there on: CheckName, CheckTag, ParseDigest, ParseReference and
// ParseManifest accept exactly what the specification allows, so that a
// repository name or a digest may become a key or a file name without a second
// look.
//
// Errors are the specification's error codes, as values: see Error. The same
// values travel between packages, between nodes (EncodeError, DecodeError) and
// to clients, where package api alone gives each its HTTP status.
package oci
