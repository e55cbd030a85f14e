// Package check keeps what clients did to tags and decides whether a single
// register for each tag, changed at one instant of every request, could have
// given those answers: whether the tags are linearizable.
//
// A request whose answer never came may take effect at any later time, or never;
// its client is not heard of again, since it could not know what it did.
package check
