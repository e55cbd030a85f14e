package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flotilla-registry/flotilla/node"
)

func backupCommand() *cobra.Command {
	var r remote
	var blobs bool
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write all names, and the blobs too where these are wanted, to a tar archive",
		Long: `Write the catalogue (repositories, tags, manifests, links) as it is at one
moment to a tar archive, while the mesh is in use. With --with-blobs the archive
holds all bytes too. A file appears only when it is whole.`,
		Args: oneArgument("file"),
		RunE: func(c *cobra.Command, args []string) error {
			path := "/flotilla/v1/backup"
			if blobs {
				path += "?blobs"
			}
			body, err := r.call(c.Context(), http.MethodPost, path, nil)
			if err != nil {
				return err
			}
			defer body.Close()
			held, err := saveBackup(args[0], body)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s holds %s\n", args[0], held)
			return nil
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&blobs, "with-blobs", false, "the bytes too, not only what they are called")
	return c
}

// saveBackup writes an archive to name, which must not exist, once it has come
// whole: its last entry is the catalogue.
func saveBackup(name string, archive io.Reader) (held holdings, err error) {
	if _, err := os.Lstat(name); err == nil {
		return held, fmt.Errorf("%s exists", name)
	}
	f, err := os.OpenFile(name+".partial", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return held, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	held, err = listArchive(io.TeeReader(archive, f))
	if err == nil {
		_, err = io.Copy(f, archive) // what follows the end of a tar archive
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return held, fmt.Errorf("the backup did not come whole: %w", err)
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return held, err
	}
	return held, syncFolder(filepath.Dir(name))
}

// syncFolder makes the name of a new file durable, where a system can do that.
func syncFolder(name string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// holdings is what an archive holds.
type holdings struct {
	blobs     int
	bytes     int64
	catalogue int64
}

func (h holdings) String() string {
	if h.blobs == 0 {
		return fmt.Sprintf("a catalogue of %s, no blobs", size(h.catalogue))
	}
	return fmt.Sprintf("a catalogue of %s and %d blobs of %s", size(h.catalogue), h.blobs, size(h.bytes))
}

func listArchive(r io.Reader) (h holdings, err error) {
	for archive := tar.NewReader(r); ; {
		entry, err := archive.Next()
		switch {
		case err == io.EOF && h.catalogue == 0:
			return h, errors.New("it is no whole backup: the catalogue, its last entry, is missing")
		case err == io.EOF:
			return h, nil
		case err != nil:
			return h, err
		case h.catalogue > 0:
			return h, errors.New("the catalogue is not its last entry")
		case entry.Name == node.ArchiveCatalogue:
			h.catalogue = entry.Size
		case strings.HasPrefix(entry.Name, node.ArchiveBlobs):
			h.blobs++
			h.bytes += entry.Size
		}
		if _, err := io.Copy(io.Discard, archive); err != nil {
			return h, err
		}
	}
}

func restoreCommand() *cobra.Command {
	var r remote
	var yes bool
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Bring the names, and the blobs, of a backup into a new mesh",
		Long: `Bring the names of a backup, and the blobs where it holds them, into a mesh
that holds nothing yet. The mesh keeps its own identity and members. Blobs that
the archive does not hold must be pushed again, or brought by another way: until
then their pulls fail.`,
		Args: oneArgument("file"),
		RunE: func(c *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			held, err := listArchive(f)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if !yes {
				fmt.Fprintf(c.OutOrStdout(), "%s holds %s. All of it would be brought into the mesh behind %s, which must hold no repository.\n", args[0], held, r.server)
				return errNotSaid
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return err
			}
			body, err := r.call(c.Context(), http.MethodPost, "/flotilla/v1/restore", f)
			if err != nil {
				return err
			}
			defer body.Close()
			var got node.Restored
			if err := json.NewDecoder(io.LimitReader(body, maxAnswer)).Decode(&got); err != nil {
				return fmt.Errorf("%s does not answer like a flotilla node", r.server)
			}
			fmt.Fprintf(c.OutOrStdout(), "restored the names and %d blobs of %s\n", got.Blobs, size(got.Bytes))
			if got.Opened {
				fmt.Fprintln(c.OutOrStdout(), "The backup held settings but no account, and so the mesh has none any more: anybody may do everything until flotilla user add makes one.")
			}
			return nil
		},
	}
	r.flags(c)
	c.Flags().BoolVar(&yes, "yes", false, "do it")
	return c
}
