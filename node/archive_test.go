package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// backup returns an archive of the mesh as node i makes it.
func (c *cluster) backup(i int, query string) []byte {
	c.t.Helper()
	return c.operate(i, http.StatusOK, http.MethodPost, "backup"+query).body
}

// repositories lists what node i serves.
func (c *cluster) repositories(i int) (names []string) {
	c.t.Helper()
	var list struct{ Repositories []string }
	if err := json.Unmarshal(c.do(i, http.StatusOK, http.MethodGet, "/v2/_catalog", nil).body, &list); err != nil {
		c.t.Fatal(err)
	}
	return list.Repositories
}

// TestBackupRestore takes all of a mesh into another one, through nodes that
// need not lead: every tag and byte is there at every node, and the mesh is
// itself. Damaged archives change nothing.
func TestBackupRestore(t *testing.T) {
	from := newCluster(t, 3, func(cfg *Config) { cfg.Replicas = 2 })
	images := from.pushMany(5, 30<<10, 0, 1, 2)
	large := newImage(100)
	pad := strings.Repeat("x", 600<<10) // does not fit into an entry
	large.manifest = []byte(strings.Replace(string(large.manifest), `"layers"`, `"annotations":{"pad":"`+pad+`"},"layers"`, 1))
	large.digest = digest.FromBytes(large.manifest)
	images["large"] = large
	from.push(1, "large", "v1", large)
	from.push(2, "app0", "moved", images["app1"])
	from.push(2, "app0", "moved", images["app0"])
	follower := from.others(from.leader(0, 1, 2))[0]
	archive := from.backup(follower, "?blobs")

	to := newCluster(t, 3)
	id := to.nodes[0].clusterID()
	follower = to.others(to.leader(0, 1, 2))[0]
	flipped := bytes.Clone(archive)
	flipped[len(flipped)-1024-700] ^= 1
	for _, row := range []struct {
		name    string
		archive []byte
	}{
		{"nothing", nil},
		{"no archive", bytes.Repeat([]byte("no archive"), 1000)},
		{"blobs are cut off", archive[:len(archive)/4]},
		{"the catalogue is cut off", archive[:len(archive)-1024-1024]},
		{"a byte of the catalogue is another", flipped},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, err := to.try(follower, http.MethodPost, "/flotilla/v1/restore", row.archive, "Authorization", "Bearer "+to.token(time.Now()))
			if err != nil || a.status/100 != 4 || len(a.body) == 0 {
				t.Errorf("%d %s, %v, want a refusal", a.status, a.body, err)
			}
			for i := range to.nodes {
				if names := to.repositories(i); len(names) > 0 {
					t.Errorf("node %d has %v", i, names)
				}
			}
			to.awaitVoters(3)
		})
	}

	var held Restored
	if err := json.Unmarshal(to.operate(follower, http.StatusOK, http.MethodPost, "restore", archive...).body, &held); err != nil {
		t.Fatal(err)
	}
	if want := 2*len(images) + 1; held.Blobs != want {
		t.Errorf("%d blobs restored, want %d", held.Blobs, want)
	}
	whole := func() {
		t.Helper()
		to.pullMany(images, 0, 1, 2)
		for i, n := range to.nodes {
			to.pull(i, "app0", "moved", images["app0"])
			if got, want := to.repositories(i), from.repositories(i); !slices.Equal(got, want) {
				t.Errorf("node %d has %v, want %v", i, got, want)
			}
			if n.clusterID() != id || len(n.catalog.Members()) != 3 {
				t.Errorf("node %d is of mesh %s with %d members", i, n.clusterID(), len(n.catalog.Members()))
			}
		}
	}
	whole()
	to.operate(0, http.StatusForbidden, http.MethodPost, "restore", archive...)
	to.awaitVoters(3)
	for i := range to.nodes {
		to.nodes[i].Stop()
		to.restart(i)
	}
	to.awaitVoters(3)
	to.push(0, "new", "v1", images["app0"])
	images["new"] = images["app0"]
	from.push(0, "new", "v1", images["app0"])
	whole()
}

// TestCatalogueAlone restores names without bytes: they are unknown until they
// are pushed again, and then all is well.
func TestCatalogueAlone(t *testing.T) {
	from := newCluster(t, 1)
	images := from.pushMany(3, 1000, 0)
	archive := from.backup(0, "")
	to := newCluster(t, 1)
	to.operate(0, http.StatusOK, http.MethodPost, "restore", archive...)
	to.add()
	for repo, img := range images {
		for i := range to.nodes {
			if got := to.do(i, http.StatusOK, http.MethodGet, "/v2/"+repo+"/manifests/v1", nil); digest.FromBytes(got.body) != img.digest {
				t.Errorf("node %d has another manifest in %s", i, repo)
			}
		}
	}
	to.heal("the loss to be known", to.others(), func() error {
		for repo, img := range images {
			for d := range img.blobs {
				if a, err := to.try(1, http.MethodHead, "/v2/"+repo+"/blobs/"+d.String(), nil); err != nil || a.status != http.StatusNotFound {
					return fmt.Errorf("%s: %d, %w", d, a.status, err)
				}
			}
		}
		return nil
	})
	for repo, img := range images {
		to.push(1, repo, "v1", img)
	}
	to.pullMany(images, 0, 1)
}

// TestRestoreThatOpens: the backup of a mesh that had keys for tokens and no
// accounts leaves a mesh without any, and says so.
func TestRestoreThatOpens(t *testing.T) {
	from, to := newCluster(t, 1), newCluster(t, 1)
	from.push(0, "app", "v1", newImage(100))
	from.do(0, http.StatusOK, http.MethodGet, "/token", nil)
	archive := from.backup(0, "?blobs")
	if _, _, err := to.nodes[0].auth.AddUser(t.Context(), "test", "root", "rootrootroot", false); err != nil {
		t.Fatal(err)
	}
	var got Restored
	if err := json.Unmarshal(to.operate(0, http.StatusOK, http.MethodPost, "restore", archive...).body, &got); err != nil || !got.Opened {
		t.Errorf("restored %+v (%v)", got, err)
	}
	to.do(0, http.StatusOK, http.MethodGet, "/v2/_catalog", nil)

	again := newCluster(t, 1) // which had none before
	got = Restored{}
	if err := json.Unmarshal(again.operate(0, http.StatusOK, http.MethodPost, "restore", archive...).body, &got); err != nil {
		t.Fatal(err)
	}
	if got.Opened {
		t.Error("it says that a mesh was opened which was open")
	}
}
