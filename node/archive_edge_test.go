package node

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http"
	"os"
	"testing"
	"time"
)

// TestBackupWhileNamesGo: a blob that nothing names any more is left out of a
// backup that began before; one that is named and missing fails it.
func TestBackupWhileNamesGo(t *testing.T) {
	c := newCluster(t, 1)
	n, img := c.nodes[0], newImage(1000)
	c.push(0, "app", "v1", img)
	d := img.layer()
	names, err := n.catalog.Backup(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer names.Close()
	if err := os.Remove(c.blobFile(0, d)); err != nil {
		t.Fatal(err)
	}
	if err := n.archiveBlobs(t.Context(), tar.NewWriter(io.Discard), names); err == nil {
		t.Error("a blob is missing and the backup is none the wiser")
	}
	if _, err := n.catalog.DeleteManifest(t.Context(), "app", img.digest); err != nil {
		t.Fatal(err)
	}
	c.do(0, http.StatusAccepted, http.MethodDelete, "/v2/app/blobs/"+d.String(), nil)
	if err := n.archiveBlobs(t.Context(), tar.NewWriter(io.Discard), names); err != nil {
		t.Errorf("nothing names the missing blob any more: %v", err)
	}
}

// TestRestoreOrder: an archive whose catalogue is not its last entry is refused
// before anything is named.
func TestRestoreOrder(t *testing.T) {
	c := newCluster(t, 1)
	c.push(0, "app", "v1", newImage(1000))
	var backup bytes.Buffer
	if err := c.nodes[0].Backup(t.Context(), &backup, true); err != nil {
		t.Fatal(err)
	}
	var catalogue []byte
	archive := tar.NewReader(&backup)
	for header, err := archive.Next(); err != io.EOF; header, err = archive.Next() {
		if err != nil {
			t.Fatal(err)
		}
		if header.Name == ArchiveCatalogue {
			if catalogue, err = io.ReadAll(archive); err != nil {
				t.Fatal(err)
			}
		}
	}
	to := newCluster(t, 1)
	content, d := random(100)
	for _, row := range []struct {
		name string
		late bool
		want bool
	}{
		{"a blob follows", true, false},
		{"the archive ends", false, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			var made bytes.Buffer
			w := tar.NewWriter(&made)
			add := func(name string, b []byte) {
				if err := w.WriteHeader(entry(name, int64(len(b)))); err != nil {
					t.Fatal(err)
				}
				if _, err := w.Write(b); err != nil {
					t.Fatal(err)
				}
			}
			add(ArchiveCatalogue, catalogue)
			if row.late {
				add(ArchiveBlobs+"sha256/"+d.Encoded(), content)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := to.nodes[0].Restore(t.Context(), &made); (err == nil) != row.want {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestRestoreRenews: what a slow restore placed first stays.
func TestRestoreRenews(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	content, d := random(100)
	if err := n.blobs.Put(t.Context(), d, 100, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	p := placed{node: n, renewed: before.Add(-24 * time.Hour)}
	if err := p.add(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if removed, err := n.disk.Remove(d, before); removed || err != nil {
		t.Errorf("removed %v, %v: it was not marked used", removed, err)
	}
}

// TestOneLookForAll: however many ask for the status, the members are asked
// once a second.
func TestOneLookForAll(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	n.looked.mu.Lock()
	n.looked.at, n.looked.last = time.Now().Add(time.Hour), seen{copies: CopiesStatus{Blobs: 77}}
	n.looked.mu.Unlock()
	if got := n.Status(t.Context()).Copies.Blobs; got != 77 {
		t.Errorf("%d blobs: the last look is not used", got)
	}
	n.looked.mu.Lock()
	n.looked.at = time.Now().Add(-lookEvery)
	n.looked.mu.Unlock()
	if got := n.Status(t.Context()).Copies.Blobs; got == 77 {
		t.Error("the last look is used for ever")
	}
}
