package node

import (
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/flotilla-registry/flotilla/metadata"
)

// folder is a node's data folder, held under a lock for as long as the node
// runs. Besides what the other packages keep in it, it has
//
//	node.json     this node's UUID, and the mesh that it belongs to
//	node.key      its private key, made once, never sent
//	mesh.secret   the join secret (secret.go), unless --secret-file names another place
//	lock          held by the running process
//	raft/         the catalogue
type folder struct {
	dir  string
	lock *os.File
	key  ed25519.PrivateKey

	mu     sync.Mutex // guards record
	record record
}

// catalogFolder is where the catalogue lies in the data folder.
const catalogFolder = "raft"

// record is node.json.
type record struct {
	ID      string         `json:"id"`
	Cluster string         `json:"cluster,omitempty"`
	Epoch   metadata.Epoch `json:"epoch,omitempty"`
	// Founding is set from the moment that the node decides to found Cluster
	// until its catalogue holds it.
	Founding bool `json:"founding,omitempty"`
	// Returning is the mesh that this node was recovered into and has still to
	// be let in by, as a member that holds nothing of its names.
	Returning string `json:"returning,omitempty"`
	// After is the epoch of Returning that this node was of. Whoever is of it
	// still has no part in the recovery.
	After metadata.Epoch `json:"after,omitempty"`
	// Promised is the one node that this node, while it belongs to no mesh,
	// lets found one: see Node.expect.
	Promised string `json:"promised,omitempty"`
}

// mesh is the mesh that this node belongs to, or returns to, or "".
func (r record) mesh() string { return cmp.Or(r.Cluster, r.Returning) }

// openFolder locks dir, creating it where absent, and reads or makes the
// node's identity.
func openFolder(dir string) (*folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	lock, err := lockFile(filepath.Join(dir, "lock"))
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("data folder %s: another flotilla process is using it", dir)
	}
	if err != nil {
		return nil, fmt.Errorf("data folder: %w", err)
	}
	f := &folder{dir: dir, lock: lock}
	if err := f.load(); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *folder) close() { _ = f.lock.Close() } // closing drops the lock

func (f *folder) path(name string) string { return filepath.Join(f.dir, name) }

// load reads the identity, or makes one in an empty folder. The key is written
// before the record, so a record always has its key.
func (f *folder) load() error {
	b, err := os.ReadFile(f.path("node.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return f.create()
	}
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if err := json.Unmarshal(b, &f.record); err != nil || !validUUID(f.record.ID) {
		return fmt.Errorf("data folder %s: node.json is damaged", f.dir)
	}
	b, err = os.ReadFile(f.path("node.key"))
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || len(block.Bytes) != ed25519.SeedSize {
		return fmt.Errorf("data folder %s: node.key is damaged", f.dir)
	}
	f.key = ed25519.NewKeyFromSeed(block.Bytes)
	return nil
}

func (f *folder) create() error {
	seed := make([]byte, ed25519.SeedSize)
	rand.Read(seed)
	f.key = ed25519.NewKeyFromSeed(seed)
	b := pem.EncodeToMemory(&pem.Block{Type: "FLOTILLA NODE SEED", Bytes: seed})
	if err := writeFile(f.path("node.key"), b); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	f.record = record{ID: newUUID()}
	return f.save()
}

// known returns what the folder says of this node.
func (f *folder) known() record {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.record
}

// enter records that this node belongs to c from now on, or is founding it.
func (f *folder) enter(c metadata.Cluster, founding bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.change(record{ID: f.record.ID, Cluster: c.ID, Epoch: c.Epoch, Founding: founding})
}

// giveUp records that this node is to return to the mesh without a catalogue,
// and to another epoch.
func (f *folder) giveUp(c metadata.Cluster) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.change(record{ID: f.record.ID, Returning: c.ID, After: c.Epoch})
}

// promise records that id may found a mesh, and reports whether it, and no
// other node before it, may. A node that belongs to a mesh promises nothing.
func (f *folder) promise(id string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.record.mesh() != "" || f.record.Promised != "" && f.record.Promised != id {
		return false, nil
	}
	return true, f.change(record{ID: f.record.ID, Promised: id})
}

// change replaces the record where it differs; f.mu is held.
func (f *folder) change(next record) error {
	if f.record == next {
		return nil
	}
	f.record = next
	return f.save()
}

func (f *folder) save() error {
	b, err := json.MarshalIndent(f.record, "", "  ")
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if err := writeFile(f.path("node.json"), append(b, '\n')); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	return nil
}

// writeFile replaces name as a whole and durably: after a crash it holds the
// old bytes or the new ones.
func writeFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, werr := f.Write(b)
	err = errors.Join(werr, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return syncFolder(filepath.Dir(name))
}

// newUUID returns a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// validUUID reports whether s has the layout that newUUID makes.
func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if c != '-' {
				return false
			}
		case !('0' <= c && c <= '9' || 'a' <= c && c <= 'f'):
			return false
		}
	}
	return true
}
