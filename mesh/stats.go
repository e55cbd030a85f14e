package mesh

import "sync/atomic"

// Stats is what a Blobs has done since it was made.
type Stats struct {
	FetchServed int64 // requests for a blob that a peer began to serve
	FetchDenied int64 // that a peer answered with not having it
	FetchFailed int64 // that no peer answered, or not in time

	MissUnknown     int64 // misses proved: every member denied having the blob
	MissUnavailable int64 // misses that could not be proved
	PassedThrough   int64 // blobs served without a local copy, the disk being full

	GatewayServed int64 // fetches that this zone's gateway served
	GatewayFills  int64 // downloads begun here because a node of the zone asked

	BytesFromPeers int64
	BytesToPeers   int64

	CopiesPlaced int64 // copies that a peer made or already had
	CopiesHeld   int64 // of these, those it already had
	CopiesFailed int64 // attempts that failed
	PlaceShort   int64 // pushes refused because too few copies could be made

	UploadsForwarded int64 // upload requests passed to the upload's home

	Passes       int64 // of Reconcile, begun
	Dropped      int64 // copies of garbage that went
	DroppedBytes int64
	Evicted      int64 // copies that went since they took too much space
	EvictedBytes int64
	Repaired     int64 // blobs of which missing copies were made
	RepairFailed int64 // blobs of which they could not be made in a pass
}

// counters are the live figures behind Stats.
type counters struct {
	served, denied, failed                atomic.Int64
	unknown, unavailable, passed          atomic.Int64
	gatewayServed, gatewayFills           atomic.Int64
	bytesFrom, bytesTo                    atomic.Int64
	placed, held, placeFailed, placeShort atomic.Int64
	forwarded                             atomic.Int64
	passes, repaired, repairFailed        atomic.Int64
	dropped, droppedBytes                 atomic.Int64
	evicted, evictedBytes                 atomic.Int64
}

// Stats returns the figures of now. Each is exact, but they are not taken at
// one instant.
func (b *Blobs) Stats() Stats {
	c := &b.stats
	return Stats{
		FetchServed: c.served.Load(), FetchDenied: c.denied.Load(), FetchFailed: c.failed.Load(),
		MissUnknown: c.unknown.Load(), MissUnavailable: c.unavailable.Load(), PassedThrough: c.passed.Load(),
		GatewayServed: c.gatewayServed.Load(), GatewayFills: c.gatewayFills.Load(),
		BytesFromPeers: c.bytesFrom.Load(), BytesToPeers: c.bytesTo.Load(),
		CopiesPlaced: c.placed.Load(), CopiesHeld: c.held.Load(),
		CopiesFailed: c.placeFailed.Load(), PlaceShort: c.placeShort.Load(),
		UploadsForwarded: c.forwarded.Load(),
		Passes:           c.passes.Load(),
		Dropped:          c.dropped.Load(), DroppedBytes: c.droppedBytes.Load(),
		Evicted: c.evicted.Load(), EvictedBytes: c.evictedBytes.Load(),
		Repaired: c.repaired.Load(), RepairFailed: c.repairFailed.Load(),
	}
}
