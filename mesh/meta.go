package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"unicode"

	"github.com/hashicorp/memberlist"
)

// Meta is what a node says of itself in gossip. Others use it to find the
// node, never to believe who it is.
type Meta struct {
	Name    string `json:"n"`           // what people call it
	Zone    string `json:"z"`           // site or datacenter
	Peer    string `json:"p"`           // host:port of its peer port
	Cluster string `json:"c,omitempty"` // UUID of its mesh, "" before it belongs to one
	Level   uint32 `json:"l,omitempty"` // highest feature level that it understands
}

// encode checks m as strictly as others will and returns its wire form.
func (m Meta) encode() ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if _, err := parseMeta(b); err != nil {
		return nil, err
	}
	return b, nil
}

// parseMeta reads what a peer said. Unknown fields are a newer release's.
func parseMeta(b []byte) (Meta, error) {
	if len(b) > memberlist.MetaMaxSize {
		return Meta{}, fmt.Errorf("name, zone and address take %d bytes together, of %d", len(b), memberlist.MetaMaxSize)
	}
	var m Meta
	if err := json.Unmarshal(b, &m); err != nil {
		return Meta{}, fmt.Errorf("not our metadata: %w", err)
	}
	if m.Name == "" {
		return Meta{}, errors.New("no name")
	}
	for _, s := range []string{m.Name, m.Zone, m.Cluster} {
		for _, r := range s {
			if !unicode.IsPrint(r) {
				return Meta{}, fmt.Errorf("unprintable character in %q", s)
			}
		}
	}
	host, port, err := net.SplitHostPort(m.Peer)
	if err != nil {
		return Meta{}, fmt.Errorf("peer address: %w", err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return Meta{}, fmt.Errorf("peer address %q is not host:port", m.Peer)
	}
	return m, nil
}
