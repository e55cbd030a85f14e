package node

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/flotilla-registry/flotilla/metadata"
)

// What two nodes speak on the peer port, chosen by ALPN (RFC 7301).
const (
	protoRaft = "flotilla-raft/1"
	protoHTTP = "http/1.1"
)

// identity is what a handshake proved about the node at the other end.
type identity struct {
	ID      string // UUID
	Cluster string // "" while it belongs to no mesh
	Epoch   metadata.Epoch
	Key     ed25519.PublicKey
	Member  bool // ID is pinned to Key in this mesh; otherwise a holder of the secret and no more
}

// root is what one secret stands for, the same on every node that knows it.
type root struct {
	ca       *x509.Certificate
	caKey    ed25519.PrivateKey
	gossip   []byte // AES-256 key of memberlist
	operator []byte // key of operators' tokens
}

// trust decides who a peer is. A certificate proves knowledge of a secret; the
// pin, from the member entries that Raft agreed on, proves the UUID. So a holder
// of the secret can ask to join as somebody new, but cannot pose as a member.
type trust struct {
	id    string
	key   ed25519.PrivateKey
	roots []root // the first made our certificate; what any of them made is accepted

	// outlived is told that a member of ours is of a later epoch than we are.
	// It must return soon. nil tells nobody.
	outlived func(epoch metadata.Epoch)

	mu      sync.RWMutex // guards the fields below
	cluster metadata.Cluster
	pins    map[string]ed25519.PublicKey
	lent    map[string]ed25519.PublicKey // pins that a member told us, good until our own catalogue has caught up
	cert    *tls.Certificate             // ours, naming cluster
	open    map[*peerConn]struct{}       // see keep
}

// newTrust derives everything from the secrets, the first of which is the one
// to use, for the node with this UUID and key.
func newTrust(secrets [][]byte, id string, key ed25519.PrivateKey) (*trust, error) {
	t := &trust{id: id, key: key, open: map[*peerConn]struct{}{}}
	for _, secret := range secrets {
		r, err := newRoot(secret)
		if err != nil {
			return nil, err
		}
		t.roots = append(t.roots, r)
	}
	return t, t.enter(metadata.Cluster{})
}

func newRoot(secret []byte) (r root, err error) {
	if r.gossip, err = hkdf.Key(sha256.New, secret, nil, "flotilla/1 gossip", 32); err != nil {
		return r, fmt.Errorf("derive gossip key: %w", err)
	}
	if r.operator, err = operatorKey(secret); err != nil {
		return r, err
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "flotilla/1 certificate authority", ed25519.SeedSize)
	if err != nil {
		return r, fmt.Errorf("derive authority: %w", err)
	}
	r.caKey = ed25519.NewKeyFromSeed(seed)
	template := certificate("flotilla mesh")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, r.caKey.Public(), r.caKey)
	if err != nil {
		return r, fmt.Errorf("make authority: %w", err)
	}
	if r.ca, err = x509.ParseCertificate(der); err != nil {
		return r, fmt.Errorf("parse authority: %w", err)
	}
	return r, nil
}

// gossipKeys are the keys of gossip, the one to encrypt with first.
func (t *trust) gossipKeys() [][]byte {
	keys := make([][]byte, len(t.roots))
	for i, r := range t.roots {
		keys[i] = r.gossip
	}
	return keys
}

// certificate is valid always: a box without a clock must not lock itself out
// (RFC 5280, section 4.1.2.5, has the year 9999 for "no well-defined end").
func certificate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
}

// enter makes this node's certificate say that it belongs to cluster.
func (t *trust) enter(cluster metadata.Cluster) error {
	template := certificate(t.id)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.URIs = []*url.URL{{Scheme: "flotilla", Host: t.id, Path: "/" + cluster.ID + "/" + strconv.FormatUint(uint64(cluster.Epoch), 10)}}
	der, err := x509.CreateCertificate(rand.Reader, template, t.roots[0].ca, t.key.Public(), t.roots[0].caKey)
	if err != nil {
		return fmt.Errorf("make node certificate: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cluster, t.cert = cluster, &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: t.key}
	return nil
}

func (t *trust) public() ed25519.PublicKey { return t.key.Public().(ed25519.PublicKey) }

// clusterID returns the mesh that this node belongs to, or "".
func (t *trust) clusterID() string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.cluster.ID
}

// pin replaces the set of members, each UUID with the only key that may use it.
// Whoever is a member no longer is none by what was lent either, and has no
// connections any more.
func (t *trust) pin(members []metadata.Member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := keysOf(members)
	for id := range t.pins {
		if next[id] == nil {
			delete(t.lent, id)
			t.endConnections(id)
		}
	}
	t.pins = next
}

// lend is pin for a node whose own catalogue does not know the members yet.
func (t *trust) lend(members []metadata.Member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := keysOf(members)
	for id := range t.lent {
		if next[id] == nil && t.pins[id] == nil {
			t.endConnections(id)
		}
	}
	t.lent = next
}

func keysOf(members []metadata.Member) map[string]ed25519.PublicKey {
	keys := make(map[string]ed25519.PublicKey, len(members))
	for _, m := range members {
		keys[m.ID] = m.Key
	}
	return keys
}

// Refusals of a handshake. They stay inside TLS alerts and logs.
var (
	errNotOurSecret = errors.New("its certificate was made with another secret")
	errOtherCluster = errors.New("it belongs to another mesh")
	errOtherEpoch   = errors.New("it belongs to another epoch of this mesh, from before or after a recovery, or another recovery")
	errPoses        = errors.New("it uses a member's UUID with another key")
	errNotMember    = errors.New("it is not a member of this mesh")
	errOtherNode    = errors.New("another node answers at this address")
)

// verify tells who presented cert, or why it is refused.
func (t *trust) verify(cert *x509.Certificate) (identity, error) {
	if !slices.ContainsFunc(t.roots, func(r root) bool { return cert.CheckSignatureFrom(r.ca) == nil }) {
		return identity{}, errNotOurSecret
	}
	who, err := readIdentity(cert)
	if err != nil {
		return identity{}, err
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if who.Cluster != "" && t.cluster.ID != "" {
		if who.Cluster != t.cluster.ID {
			return identity{}, errOtherCluster
		}
		if who.Epoch != t.cluster.Epoch {
			if pin := t.pins[who.ID]; pin != nil && pin.Equal(who.Key) && who.Epoch > t.cluster.Epoch && t.outlived != nil {
				t.outlived(who.Epoch)
			}
			return identity{}, errOtherEpoch
		}
	}
	pin, known := t.pinOf(who.ID)
	if known && !bytes.Equal(pin, who.Key) {
		return identity{}, errPoses
	}
	who.Member = known && who.Cluster == t.cluster.ID
	return who, nil
}

// pinOf returns the only key that may use id, where there is one. It wants t.mu
// held.
func (t *trust) pinOf(id string) (pin ed25519.PublicKey, known bool) {
	if id == t.id {
		return t.public(), true
	}
	if pin, known = t.pins[id]; !known {
		pin, known = t.lent[id]
	}
	return pin, known
}

// readIdentity reads what enter wrote.
func readIdentity(cert *x509.Certificate) (identity, error) {
	key, ok := cert.PublicKey.(ed25519.PublicKey)
	if !ok || len(cert.URIs) != 1 || cert.URIs[0].Scheme != "flotilla" || !validUUID(cert.URIs[0].Host) {
		return identity{}, errors.New("its certificate names no node")
	}
	cluster, epoch, ok := strings.Cut(strings.TrimPrefix(cert.URIs[0].Path, "/"), "/")
	n, err := strconv.ParseUint(epoch, 10, 64)
	if !ok || err != nil {
		return identity{}, errors.New("its certificate names no mesh")
	}
	return identity{ID: cert.URIs[0].Host, Cluster: cluster, Epoch: metadata.Epoch(n), Key: key}, nil
}

// peerOf returns the identity that the handshake of an open connection proved.
func (t *trust) peerOf(cs tls.ConnectionState) (identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return identity{}, errNotOurSecret
	}
	return t.verify(cs.PeerCertificates[0])
}

// config returns the TLS configuration for one side of the peer port. check
// may refuse, for the protocol that was negotiated, an identity that verify
// accepts. Go's own chain verification is
// off since it knows neither the authority's rule about time nor the pins;
// VerifyConnection runs in its place on every handshake.
func (t *trust) config(protos []string, check func(who identity, proto string) error) *tls.Config {
	ours := func() (*tls.Certificate, error) {
		t.mu.RLock()
		defer t.mu.RUnlock()
		return t.cert, nil
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             protos,
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return ours() },
		GetClientCertificate:   func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return ours() },
		VerifyConnection: func(cs tls.ConnectionState) error {
			who, err := t.peerOf(cs)
			if err != nil {
				return err
			}
			return check(who, cs.NegotiatedProtocol)
		},
	}
}
