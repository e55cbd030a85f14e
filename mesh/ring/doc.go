// Package ring says which nodes should hold a blob, and whom to ask for it.
// It is a pure function of the digest and the list of nodes: no I/O, no clock,
// so every node computes the same answer and nothing is looked up.
//
// The method is weighted rendezvous hashing (Thaler and Ravishankar 1998;
// weights after Schindelhauer and Schomaker 2005): each node draws a score for
// the digest, and the smallest scores own it. A node that joins takes its share
// from all others evenly, one that leaves gives its share to all evenly, and
// nothing else moves; so the previous owners of a blob are simply its next
// ranks, which is where a reader looks next.
//
// The golden vectors of the tests are a promise: a change of the function
// moves every blob of every mesh.
package ring
