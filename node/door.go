package node

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
)

// The requests that need the secret but no membership.
const (
	helloPath   = "/node/hello"
	joinPath    = "/node/join"
	promisePath = "/node/promise"
)

func isDoor(path string) bool { return path == helloPath || path == joinPath || path == promisePath }

// doorHandler serves nodes that know the secret and may become members.
func (n *Node) doorHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+helloPath, func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, greeting{Name: n.cfg.Name, Cluster: n.clusterID(), Epoch: n.folder.known().Epoch, Gone: n.isGone(r.Context(), callerOf(r.Context()))})
	})
	mux.HandleFunc("POST "+promisePath, func(w http.ResponseWriter, r *http.Request) {
		given, err := n.folder.promise(callerOf(r.Context()).ID)
		switch {
		case err != nil:
			refuse(w, err)
		case !given:
			refuse(w, oci.ErrUnavailable.Because("%s has promised another node to let it found", n.cfg.Name))
		default:
			writeJSON(w, greeting{Name: n.cfg.Name})
		}
	})
	mux.HandleFunc("POST "+joinPath, func(w http.ResponseWriter, r *http.Request) {
		in, err := n.admit(r)
		if err != nil {
			n.log.Warn("newcomer refused", "id", oci.RequestID(r.Context()), "from", r.RemoteAddr, "reason", err)
			refuse(w, err)
			return
		}
		writeJSON(w, in)
	})
	return mux
}

// isGone reports whether who takes itself for a member and is none.
func (n *Node) isGone(ctx context.Context, who identity) bool {
	if who.Member || who.Cluster == "" || who.Cluster != n.clusterID() || n.catalog.Sync(ctx) != nil {
		return false
	}
	return !slices.ContainsFunc(n.catalog.Members(), func(m metadata.Member) bool { return m.ID == who.ID })
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// admit makes the caller a member. Its key is the one that the handshake
// proved, and its address is proved by dialling back: an address that only the
// newcomer believes in would leave the mesh with a member it cannot reach.
func (n *Node) admit(r *http.Request) (admission, error) {
	if n.clusterID() == "" {
		return admission{}, oci.ErrUnavailable.Because("%s belongs to no mesh yet", n.cfg.Name)
	}
	var asked request
	body := http.MaxBytesReader(nil, r.Body, maxJoinBody)
	if b, err := io.ReadAll(body); err != nil || json.Unmarshal(b, &asked) != nil {
		return admission{}, oci.ErrDenied.Because("unreadable request to join")
	}
	m, who := asked.Member, callerOf(r.Context())
	m.ID, m.Key = who.ID, who.Key
	if !nameRule.MatchString(m.Name) || !nameRule.MatchString(m.Zone) || m.Level == 0 {
		return admission{}, oci.ErrDenied.Because("invalid name, zone or feature level")
	}
	if asked.Blank {
		if err := n.checkBlank(r.Context(), m.ID); err != nil {
			return admission{}, err
		}
	}
	if err := n.checkName(m); err != nil {
		return admission{}, err
	}
	if err := n.checkAddress(r.Context(), m); err != nil {
		return admission{}, err
	}
	if err := n.catalog.Join(r.Context(), m); err != nil {
		return admission{}, err
	}
	return admission{Cluster: n.catalog.Cluster(), Members: n.catalog.Members()}, nil
}

// checkBlank refuses a voter whose log was lost: it may have acknowledged what
// it no longer has, and with its vote a node that never had it could be
// elected. Only the leader knows for certain who votes, once it has proved that
// it leads.
func (n *Node) checkBlank(ctx context.Context, id string) error {
	known := slices.ContainsFunc(n.catalog.Members(), func(m metadata.Member) bool { return m.ID == id })
	if !known {
		return nil
	}
	raft := n.catalog.Status()
	if raft.State != "leader" {
		return oci.ErrUnavailable.Because("%s does not lead the mesh, and a member without its log is let in by the leader alone", n.cfg.Name)
	}
	if err := n.catalog.Writable(ctx); err != nil {
		return err
	}
	if slices.Contains(raft.Voters, id) {
		return oci.ErrDenied.Because("this node has a vote but has lost its part of the catalogue: start it with an empty data folder and another --name")
	}
	return nil
}

// checkName refuses a name that another member has, as the catalogue would, and
// says what the operator can do: the other may be this machine's old disk.
func (n *Node) checkName(m metadata.Member) error {
	for _, other := range n.catalog.Members() {
		if other.Name == m.Name && other.ID != m.ID {
			return oci.ErrDenied.Because("another member is called %s: say --name, or, if that one is gone for good, flotilla remove %s", m.Name, m.Name)
		}
	}
	return nil
}

// checkAddress refuses an address that cannot be m's in this mesh.
func (n *Node) checkAddress(ctx context.Context, m metadata.Member) error {
	host, _, err := net.SplitHostPort(m.Address)
	if err != nil {
		return oci.ErrDenied.Because("%q is no address", m.Address)
	}
	for _, other := range n.catalog.Members() {
		if other.ID == m.ID {
			continue
		}
		if other.Address == m.Address {
			return oci.ErrDenied.Because("%s is the address of %s: say --advertise", m.Address, other.Name)
		}
		otherHost, _, _ := net.SplitHostPort(other.Address)
		if loopback(host) && !loopback(otherHost) {
			return oci.ErrDenied.Because("%s is loopback, which %s at %s cannot reach: say --advertise", m.Address, other.Name, other.Address)
		}
	}
	conn, err := n.dialer.dialAddr(ctx, m.Address, protoHTTP, func(who identity, _ string) error {
		if who.ID != m.ID {
			return errOtherNode
		}
		return nil
	})
	if err != nil {
		return oci.ErrUnavailable.Because("%s cannot reach your peer port at %s (%v): open it, or say --advertise", n.cfg.Name, m.Address, err)
	}
	_ = conn.Close()
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// self is this node as it announces itself.
func (n *Node) self() metadata.Member {
	return metadata.Member{
		ID:      n.id(),
		Name:    n.cfg.Name,
		Key:     n.trust.public(),
		Zone:    n.cfg.Zone,
		Weight:  uint32(n.cfg.Weight),
		Level:   metadata.FeatureLevel,
		Address: n.peerAddr,
	}
}

func (n *Node) id() string { return n.trust.id }

func (n *Node) clusterID() string { return n.trust.clusterID() }
