package node

import (
	"net"
	"time"
)

// lastWord is how long a request of a node that was a member may still take: it
// may be the one that ended its membership, and wants its answer.
const lastWord = time.Second

// peerConn is a connection under the TLS of the peer port, accepted or dialled.
type peerConn struct {
	net.Conn
	trust  *trust
	served bool   // accepted here
	id     string // the node at the other end; set by keep
}

// keep remembers an HTTP connection as long as it is open, so that it ends with
// the membership of the node at its other end; it fails where that was a member
// at the handshake and is none any more. Raft's streams are not for keep: the
// catalogue ends them, and a leader its own last of all, so that the member
// hears what became of it.
func (t *trust) keep(c *peerConn, who identity) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.pinOf(who.ID); who.Member && !known {
		return errNotMember
	}
	c.id = who.ID
	t.open[c] = struct{}{}
	return nil
}

// endConnections ends what is open between this node and id. Requests that come
// in are refused one by one from now on; only answers get out for a moment yet.
// It wants t.mu held.
func (t *trust) endConnections(id string) {
	for c := range t.open {
		if c.id != id {
			continue
		}
		delete(t.open, c)
		if c.served {
			time.AfterFunc(lastWord, func() { _ = c.Conn.Close() })
		} else {
			_ = c.Conn.Close()
		}
	}
}

// Close implements net.Conn.
func (c *peerConn) Close() error {
	c.trust.mu.Lock()
	delete(c.trust.open, c)
	c.trust.mu.Unlock()
	return c.Conn.Close()
}
