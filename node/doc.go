// Package node is one running process of a mesh: its configuration, the wiring
// of its parts, its ports, and the order in which all of it starts and stops.
//
// Start, in node.go, is the table of contents: it opens the data folder
// (identity.go), derives from the secret (secret.go) who is to be trusted
// (trust.go, conns.go), takes the ports (public.go, peers.go, address.go),
// opens the disk, the gossip and the catalogue, serves (parts.go), and then
// finds the mesh that the node belongs to (join.go; the other side of the
// conversation is door.go). down is the same in reverse.
//
// Work that a node does by itself is a row in passes.go, most of it in heal.go;
// what its zone is to hold always is in pins.go, and how far that is so in
// pinstatus.go.
// What operators ask for is in admin.go and archive.go, how they show that they
// may in token.go; recover.go is for nodes that are stopped.
//
// mesh and metadata never meet: what one needs of the other is joined here,
// in openCatalog, openBlobs and onMembers.
package node
