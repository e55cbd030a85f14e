// Package api is the public port: HTTP in, HTTP out. It alone knows status
// codes and headers of the distribution specification, and it keeps no state:
// what names mean it asks the catalogue (package metadata), bytes it takes
// from and gives to two small interfaces, Blobs and Uploads, which one disk
// and the whole mesh satisfy alike.
//
// A request meets, in this order:
//
//	routes.go     the table of paths; one wrapper for ids, logs and errors
//	response.go   deadlines that roll on while bytes move, and counting
//	manifests.go, blobs.go, uploads.go, lists.go, health.go, admin.go, pins.go
//	              one handler per row of the table
//	errors.go     the one place where an error becomes a status
//
// A handler checks its input with package oci, which fails before anything is
// read or written, and returns an error instead of answering one.
//
// Nothing here acts on a header that claims to come from a peer: peers have a
// port of their own.
package api
