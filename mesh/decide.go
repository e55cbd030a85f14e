package mesh

// action is what a pass does about one blob at one node.
type action uint8

const (
	keep  action = iota // nothing: it stays as it is
	fetch               // make a copy here
	send                // make copies at the owners that lack one
	drop                // give up the copy here
)

// naming is how the catalogue names a blob.
type naming uint8

const (
	unnamed    naming = iota // nothing names it
	referenced               // something does, though nobody was promised its bytes
	wanted                   // some node must hold its bytes
)

// facts is all that decides what becomes of a blob at this node.
type facts struct {
	held  bool // a durable copy is here
	owner bool // this node is one of those that should hold it, be it for its zone's pins
	naming
	lost bool // recorded as lost: no member had it

	sources int  // other members that hold it
	denied  bool // every other member lacks it, and none is down or silent
	lacking int  // live owners that lack it
	leads   bool // of those that could act in this node's place, none ranks before it

	sure      bool // the catalogue was current when the pass began, and marks of use hold
	idle      bool // the copy here was not used since the cutoff of the pass
	over      bool // the copies that need not be here take more than they may
	confirmed bool // every owner vouches for a durable copy, under this membership
}

// decide is repair, rebalancing, eviction and garbage collection in one table.
// What is not listed stays: a copy goes only because nothing names its bytes,
// or because every owner vouches for its own.
func decide(f facts) action {
	switch {
	case f.held && f.naming == unnamed && f.idle && f.sure:
		return drop // garbage
	case f.held && f.naming != unnamed && !f.owner && f.over && f.confirmed && f.sure:
		return drop // eviction
	case f.held && f.naming == referenced && f.lacking > 0 && f.leads:
		return send // the owners do not know that they should have it
	case !f.held && f.naming == wanted && f.owner && f.sources > 0:
		return fetch
	case !f.held && f.naming == wanted && f.owner && f.denied && f.leads && !f.lost:
		return fetch // what nobody finds now is lost
	}
	return keep
}
