// Package bench measures container registries: any that speak the OCI
// distribution API, side by side, from one client.
//
// A measurement is a table of workloads by targets, and each cell of it holds
// one sample a round. Within a round the targets are measured one after the
// other, and every round starts with another of them: what else the machine
// does, and what one target leaves behind for the next, falls on all alike. The
// ratio of a target to the first is taken within each round and the median of
// these is shown, so that noise which both shared is gone from it. A round that
// does not count comes first.
//
// The client must never be what is measured. It speaks HTTP/1.1 on connections
// of its own (conn.go): a worker writes a request and reads the answer with no
// goroutine between, which costs less than half of what net/http's Transport
// does. Content (content.go) is random, made and hashed before the clock starts,
// and new for each round and target, so that nothing can be compressed or
// answered from what the registry has already. Only workloads that say so check
// digests of what they pull. One answer with the wrong status fails its cell for
// good, and Run then returns an error.
//
// A workload (workload.go) is three nested functions: the first prepares a
// target, the second a round, the third is timed. What is pushed is entered in
// the target's ledger before the request is sent, and cleaning up (cleanup.go)
// works from that, also after an interrupt, for a bounded time. Repositories
// carry a random name; a registry without a way to delete repositories may go
// on listing them empty, and most free the bytes only when they collect garbage.
package bench
