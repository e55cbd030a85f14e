// Package mesh keeps bytes across all machines: who is here, who holds what,
// and how a blob gets to where it is wanted.
//
// Members is the gossip: it finds the other nodes, says who seems alive, and
// joins that with the roster (which Raft decides) into the ring. Nothing that
// gossip says moves ownership, and no address that it names is trusted: the
// caller's HTTP client proves who answers.
//
// Blobs makes the disks of all members look like one. A hit is answered from
// the local disk. A miss is fetched from the zone's gateway, the owners, the
// next ranks, and at last from anyone (fetch.go), while it streams to the
// client; it is reported absent only when every member denied having it. Who
// sent wrong bytes of a blob is asked for it last (distrust.go). What
// is pushed lands on the local disk first and is then placed on its owners
// (place.go). An upload lives at one node, its home, and the others pass
// chunks on (uploads.go). PeerHandler answers other members (peer.go).
//
// Reconcile is the one pass behind repair, rebalancing, eviction and garbage
// collection. It walks over what is held here and what the catalogue wants
// (walk.go, reconcile.go), asks the others what they hold (holdings.go), and
// decides by one table (decide.go). Owners fetch what they lack (repair.go);
// copies that need not be here go only when every owner vouches for its own
// (evict.go). What it saw is the node's health (health.go); due.go says when
// the next pass is wanted.
//
// Only a client's node, its gateway and an owner that repairs may start a
// download; everyone else serves what it has. With one more rule, that a copy
// still growing serves only those who have less of it, no two nodes ever wait
// for each other:
//
//   - a node that asks its gateway at offset 0 ranks below it in one common
//     order, and never gets ahead of it from then on;
//   - a node that follows any other copy had strictly less of it.
//
// A circle of waiting nodes would need one step against that order.
package mesh
