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
}

// counters are the live figures behind Stats.
type counters struct {
	served, denied, failed                atomic.Int64
	unknown, unavailable, passed          atomic.Int64
	gatewayServed, gatewayFills           atomic.Int64
	bytesFrom, bytesTo                    atomic.Int64
	placed, held, placeFailed, placeShort atomic.Int64
	forwarded                             atomic.Int64
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
	}
}
