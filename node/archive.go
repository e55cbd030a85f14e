package node

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/flotilla-registry/flotilla/api/oci"
	"github.com/flotilla-registry/flotilla/metadata"
)

// A backup is a tar archive (POSIX.1-2001): the blobs, where they are wanted,
// each under its algorithm and hash as in an image layout, then the catalogue.
// Bytes come first so that a restore can place them before it names them, and
// an archive that was cut short shows it by having no catalogue.
const (
	ArchiveBlobs     = "blobs/"
	ArchiveCatalogue = "catalogue"
)

// Restored is what a backup held.
type Restored struct {
	Blobs int   `json:"blobs"`
	Bytes int64 `json:"bytes"` // of the blobs
	// Opened says that it held settings but no account, which took the place of
	// the accounts that the mesh had: from now on anybody may do everything.
	Opened bool `json:"opened,omitempty"`
}

// Backup implements api.Archive. The catalogue is as it is when this begins,
// and so is the list of blobs. A blob that cannot be read fails the backup,
// unless its last name went meanwhile.
func (n *Node) Backup(ctx context.Context, w io.Writer, blobs bool) error {
	names, err := n.catalog.Backup(ctx)
	if err != nil {
		return err
	}
	defer names.Close()
	archive := tar.NewWriter(w)
	if blobs {
		if err := n.archiveBlobs(ctx, archive, names); err != nil {
			return fmt.Errorf("back up blobs: %w", err)
		}
	}
	if err := archive.WriteHeader(entry(ArchiveCatalogue, names.Size)); err != nil {
		return fmt.Errorf("back up catalogue: %w", err)
	}
	if _, err := io.Copy(archive, names); err != nil {
		return fmt.Errorf("back up catalogue: %w", err)
	}
	return archive.Close()
}

func (n *Node) archiveBlobs(ctx context.Context, archive *tar.Writer, names *metadata.Backup) error {
	for after := digest.Digest(""); ; {
		list, err := names.Wanted(after, 1000)
		if err != nil || len(list) == 0 {
			return err
		}
		for _, want := range list {
			if want.Lost { // nobody has it; the catalogue says so too
				continue
			}
			err := n.archiveBlob(ctx, archive, want.Digest)
			if errors.Is(err, oci.ErrBlobUnknown) {
				err = n.unlessUnnamed(ctx, want.Digest, err)
			}
			if err != nil {
				return err
			}
		}
		after = list[len(list)-1].Digest
	}
}

// unlessUnnamed returns nil where nothing names d any more, else missing.
func (n *Node) unlessUnnamed(ctx context.Context, d digest.Digest, missing error) error {
	if err := n.catalog.Sync(ctx); err != nil {
		return errors.Join(missing, err)
	}
	named, err := n.catalog.Referenced([]digest.Digest{d})
	if err != nil || named[0] {
		return errors.Join(missing, err)
	}
	n.log.Info("a blob went while the backup ran: nothing names it any more", "digest", d)
	return nil
}

func (n *Node) archiveBlob(ctx context.Context, archive *tar.Writer, d digest.Digest) error {
	f, size, err := n.blobs.Open(ctx, d)
	if err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	defer f.Close()
	if err := archive.WriteHeader(entry(ArchiveBlobs+string(d.Algorithm())+"/"+d.Encoded(), size)); err != nil {
		return err
	}
	if _, err := io.Copy(archive, f); err != nil {
		return fmt.Errorf("%s: %w", d, err)
	}
	return nil
}

func entry(name string, size int64) *tar.Header {
	return &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: time.Now()}
}

// Restore implements api.Archive. Blobs are placed on their owners as a push
// would place them, and named all at once at the end; what comes before an end
// too early is dropped by the collection in time.
func (n *Node) Restore(ctx context.Context, r io.Reader) (any, error) {
	repos, err := n.catalog.Repositories(ctx, metadata.Page{N: 1}, nil)
	if err != nil {
		return nil, err
	}
	if len(repos.Items) > 0 {
		return nil, oci.ErrDenied.Because("the mesh holds repositories: a backup is restored into a new mesh only")
	}
	var held Restored
	placed := placed{node: n, renewed: time.Now()}
	for archive := tar.NewReader(r); ; {
		header, err := archive.Next()
		switch {
		case err == io.EOF:
			return nil, oci.ErrUnsupported.Because("the archive has no catalogue: it is no backup, or not all of one")
		case err != nil:
			return nil, errNoArchive.Wrap(err)
		case header.Name == ArchiveCatalogue:
			names := &entryReader{Reader: &lastEntry{archive, header.Size}}
			open := n.auth.Open()
			if err := n.catalog.Restore(ctx, names); err != nil {
				if names.broken.Load() { // the rest is what came of it
					err = errNoArchive.Wrap(err)
				}
				return nil, err
			}
			if held.Opened = !open && n.auth.Open(); held.Opened {
				n.log.Warn("the backup that was restored held no accounts: anyone who reaches the public port may pull, push and delete")
			}
			return held, nil
		case strings.HasPrefix(header.Name, ArchiveBlobs):
			d, err := oci.ParseDigest(path.Base(path.Dir(header.Name)) + ":" + path.Base(header.Name))
			if err != nil {
				return nil, err
			}
			err = n.blobs.Put(ctx, d, header.Size, archive)
			if err == nil {
				err = placed.add(ctx, d)
			}
			if err != nil {
				return nil, fmt.Errorf("restore %s: %w", d, err)
			}
			held.Blobs++
			held.Bytes += header.Size
		}
	}
}

var errNoArchive = oci.ErrUnsupported.Because("this is no tar archive, or it ends early")

// entryReader remembers that reading failed. Who reads may be another goroutine,
// which sends the bytes on.
type entryReader struct {
	io.Reader
	broken atomic.Bool
}

// Read implements io.Reader.
func (a *entryReader) Read(p []byte) (int, error) {
	n, err := a.Reader.Read(p)
	if err != nil && err != io.EOF {
		a.broken.Store(true)
	}
	return n, err
}

// placed is the blobs of a restore that nothing names yet. It keeps them from
// being collected, however long the rest takes.
type placed struct {
	node    *Node
	blobs   []digest.Digest
	renewed time.Time
}

func (p *placed) add(ctx context.Context, d digest.Digest) error {
	p.blobs = append(p.blobs, d)
	if time.Since(p.renewed) < cmp.Or(p.node.cfg.Unused, 24*time.Hour)/4 {
		return nil
	}
	for _, d := range p.blobs {
		if err := p.node.blobs.Renew(ctx, d); err != nil {
			return fmt.Errorf("renew %s: %w", d, err)
		}
	}
	p.renewed = time.Now()
	return nil
}

// lastEntry reads the entry of an archive that must be its last. It gives out
// the end of the entry only once that is known, so that whoever proves the
// whole of it before use never uses another.
type lastEntry struct {
	archive *tar.Reader
	left    int64
}

// Read implements io.Reader.
func (l *lastEntry) Read(p []byte) (int, error) {
	n, err := l.archive.Read(p)
	if l.left -= int64(n); n > 0 && l.left == 0 {
		if _, end := l.archive.Next(); end != io.EOF {
			return 0, oci.ErrUnsupported.Because("the catalogue is not the last entry of the archive, or the archive ends early").Wrap(end)
		}
	}
	return n, err
}
