// Package mesh keeps bytes across all machines: who is here, who holds what,
// and how a blob gets to where it is wanted.
//
// Members is the gossip: it finds the other nodes, says who seems alive, and
// joins that with the roster (which Raft decides) into the ring. Nothing that
// gossip says moves ownership, and no address that it names is trusted: the
// caller's HTTP client proves who answers.
//
// Blobs makes the disks of all members look like one. A hit is answered from
// the local disk. A miss is fetched from the neighbour that the zone's head
// names, the owners, the next ranks, and at last from anyone (fetch.go), while
// it streams to the client; it is reported absent only when every member denied
// having it. Who sent wrong bytes of a blob is asked for it last (distrust.go).
// What is pushed lands on the local disk first and is then placed on its owners
// (place.go): one copy goes over the line to each other zone, and who takes it
// passes it on there. A copy grows under the eyes of others like any download
// (copies.go). An upload lives at one node, its home, and the others pass chunks
// on (uploads.go). PeerHandler answers other members (peer.go), who ask for blobs
// by question.go and for all else that is small by call.go.
//
// Reconcile is the one pass behind repair, rebalancing, eviction and garbage
// collection. It walks over what is held here and what the catalogue wants
// (walk.go, reconcile.go), asks the others what they hold (holdings.go), and
// decides by one table (decide.go). Owners fetch what they lack (repair.go);
// copies that need not be here go only when every owner vouches for its own
// (evict.go). A zone may pin blobs, which one node of it then holds, whoever owns
// them (keep.go). What it saw is the node's health (health.go); due.go says when
// the next pass is wanted. Who holds what now, where.go finds out for people
// and for whoever waits for copies; and what is on its way, transfers.go.
//
// What comes from another zone is counted (traffic.go) and held back where it
// is read, by a rate that holds for the whole zone (rates.go, bucket.go).
//
// # The line
//
// Nodes of a zone that want the same blob at once form a line: each takes it
// from one neighbour and gives it to one, following the copy that still grows
// (brigade.go). So every link carries the bytes once, however many nodes there
// are, and one more node costs the few milliseconds of one more hop.
//
// The head of the zone for a blob (an owner in it, or else its gateway, see
// ring.Head) keeps the ledger of who takes from whom (ledger.go). A node sends
// the head a step: how far it is, from whom it takes, and who failed it. The
// answer is a place in line and a neighbour, and nothing is waited for to give
// it. A newcomer gets whoever is strictly ahead of it and gives to nobody yet;
// first who is not known to be slow, then others than the head, then who gave
// least, then the neighbour that it has for the image's other layers, then who
// is finished, then who has most. If nobody in the zone is ahead, the node
// turns to the sources outside, one node at a time: so the blob comes in once,
// through the head as a rule, and through whoever has most where the head died.
// Who gains nothing outside makes way for the next after a while. A head of an
// earlier version, which knows of no lines, is passed by: the node turns to the
// sources at once.
//
// Four times a second each node reports, and at the end of all but small blobs.
// The head may answer with another neighbour (neighbour.go): somebody of the
// zone for who takes from outside; for who shares its neighbour, one that gives
// to nobody; for who is held up by a slow neighbour, that one's own source, and
// then the slow one, which shares it, comes to the end of the line; for who
// gets little of much over a slow link, one that is idle. Who takes from a
// finished node shows by no step that it is slow: so whoever follows it fetches a
// little from that node now and then, and passes it where that comes faster
// (trial.go). A neighbour that dies, denies or is silent is left at the byte
// reached, for the one that it took from; who has no answer yet says that it is
// alive meanwhile. The ledger is in memory alone, bounded, and forgets; where the
// head is lost the reports build it again at the next in rank. Nodes of other
// zones are in no line here: they are served, and never named.
//
// Repairs are in the line with all others, so that what several owners of a zone
// lack comes in once too. Each keeps to the pace of repairs until a client waits
// for the blob behind it; then it asks its own source to hurry, which may be
// another repair.
//
// # Nobody waits in a circle
//
// Only a client's node, its head, an owner that repairs and who is sent a copy
// may start a download; everyone else serves what it has. A copy is sent by who
// holds it durably and waits for nobody's bytes. Let A wait for bytes of B's
// growing copy. B allows that only if, at the moment it is asked,
//
//   - B has strictly more bytes than A; or
//   - A has none, and B's place in line is before A's. A download has one
//     place from its first step to its end, whoever is the head later, and
//     places are numbers: their order is the same for all. A download may
//     be without a place, as that of a copy which is sent is as long as the
//     sender serves; it waits by the first rule alone, and is waited for by it.
//
// B never falls behind A afterwards, for what A has came through B. Suppose
// nodes wait in a circle. Going round it nobody has fewer bytes than the one
// before, so all have the same number. Take the wait that began last. Had it
// begun by the first rule, its B had more than its A, which the circle denies.
// So its A had nothing, and nobody in the circle has anything; then none of its
// waits began by the first rule, and round the circle each place is before the
// last one: which no order allows. This does not rest on what any ledger says.
// The node that is asked holds to it alone, so two heads that do not know of
// each other, or a head that errs, cost a refusal and never a circle.
package mesh
