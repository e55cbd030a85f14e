// Package auth decides who may do what. It keeps nothing itself: accounts,
// token keys and the policy document are settings that the whole mesh agrees
// on, and each node decides from its own copy of them, so that any node gives
// the answer that every other would give.
//
// A request is judged in two steps. Authority.Identify says who asks, from a
// password, a token or a client certificate; Authority.Allow says whether that
// principal may do something to a repository, under the policy as it is now. A
// token never gives more than the policy: it can only ask for less.
//
//	authority.go  what an Authority is made of, and its view of the settings
//	principal.go  who asks, and whether it may
//	accounts.go   users and robots of the mesh
//	htpasswd.go   accounts of this node's file
//	password.go   checking a password, at a bounded cost
//	tokens.go     tokens, made and checked; keys.go the keys under them
//	scope.go      what a client asks a token for
//	endpoint.go   where it asks; challenge.go tells it so
//	document.go   the policy as people write it, read.go from YAML
//	policy.go     the policy as it is asked; pattern.go names by pattern
//	limits.go     how much anybody may ask for
//	proof.go      when a node that has just begun may judge
//	calls.go      what the admin calls take and answer
//
// Whatever cannot be understood opens no door: a setting that a newer version
// wrote in words unknown to this one denies what it might have denied.
//
// While nobody has an account (none in the mesh, no htpasswd file, no authority
// for client certificates) everybody may do everything but the admin calls.
package auth
