package rig

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// format gives the node an empty disk, or where there can be none an empty
// folder.
func (n *Node) format(ctx context.Context) error {
	if err := os.MkdirAll(n.data, 0o700); err != nil || !n.rig.disks {
		return err
	}
	if err := n.makeImage(ctx, n.image, n.rig.cfg.DiskSize); err != nil {
		return err
	}
	if err := mountImage(ctx, n.image, n.data); err != nil {
		return err
	}
	if !n.rig.cfg.Apart {
		return nil
	}
	if err := n.makeImage(ctx, n.image+".raft", n.rig.cfg.DiskSize); err != nil {
		return err
	}
	if err := os.Mkdir(n.raft(), 0o700); err != nil {
		return err
	}
	return mountImage(ctx, n.image+".raft", n.raft())
}

func (n *Node) raft() string { return filepath.Join(n.data, "raft") }

func (n *Node) makeImage(ctx context.Context, file string, size int64) error {
	if err := os.RemoveAll(file); err != nil {
		return err
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(file, size); err != nil {
		return err
	}
	return command(ctx, "", "mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", file)
}

// mountImage has the file system write nothing by itself for as long as it can,
// so that what nobody synced is lost when its power is cut.
func mountImage(ctx context.Context, image, folder string) error {
	return command(ctx, "", "mount", "-o", "loop,commit=300", image, folder)
}

// unmount lets go of the disk of a node that does not run.
func (n *Node) unmount(ctx context.Context) error {
	var err error
	for range 100 { // somebody may be reading it
		err = nil
		if n.rig.cfg.Apart && mounted(n.raft()) {
			err = command(ctx, "", "umount", n.raft())
		}
		if err == nil && mounted(n.data) {
			err = command(ctx, "", "umount", n.data)
		}
		if err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

func (n *Node) unformat(ctx context.Context) error {
	return errors.Join(n.unmount(ctx), os.RemoveAll(n.image), os.RemoveAll(n.image+".raft"), os.RemoveAll(n.data))
}

// mounted reports whether folder is the root of a file system.
func mounted(folder string) bool {
	a, err := os.Stat(folder)
	if err != nil {
		return false
	}
	b, err := os.Stat(filepath.Dir(folder))
	return err == nil && a.Sys().(*syscall.Stat_t).Dev != b.Sys().(*syscall.Stat_t).Dev
}

// CutPower ends the nodes as a power cut does, all at once: what they did not
// sync is lost. Start brings them back.
func CutPower(ctx context.Context, nodes ...*Node) error {
	var errs []error
	for _, n := range nodes {
		n.MayEnd() // it may notice before it is killed
		errs = append(errs, shutdown(n.data))
		if n.rig.cfg.Apart {
			errs = append(errs, shutdown(n.raft()))
		}
	}
	for _, n := range nodes {
		n.Kill() // before the file system goes: else it stays as it is
		errs = append(errs, n.unmount(ctx), mountImage(ctx, n.image, n.data))
		if n.rig.cfg.Apart {
			errs = append(errs, mountImage(ctx, n.image+".raft", n.raft()))
		}
	}
	return errors.Join(errs...)
}

// Wipe kills the node and gives it an empty disk.
func (n *Node) Wipe(ctx context.Context) error {
	n.Kill()
	if err := n.unformat(ctx); err != nil {
		return err
	}
	return n.format(ctx)
}

// Fill leaves so many bytes free on the node's disk, or fewer. Empty ends it.
func (n *Node) Fill(leave int64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(n.data, &fs); err != nil {
		return err
	}
	take := int64(fs.Bavail)*int64(fs.Bsize) - leave
	if take <= 0 {
		return nil
	}
	f, err := os.OpenFile(n.ballast(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	err = allocate(f, take)
	return errors.Join(err, f.Close())
}

// Empty gives back what Fill took.
func (n *Node) Empty() error {
	if err := os.Remove(n.ballast()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (n *Node) ballast() string { return filepath.Join(n.data, "ballast") }

// Blob is where the node stores the blob of a digest, "sha256:...".
func (n *Node) Blob(digest string) string {
	const prefix = "sha256:"
	hex := digest[len(prefix):]
	return filepath.Join(n.data, "blobs", "sha256", hex[:2], hex)
}

// Holds reports whether the node has the blob on its disk.
func (n *Node) Holds(digest string) bool {
	_, err := os.Stat(n.Blob(digest))
	return err == nil
}

// Rotten reports whether the node stores other bytes as a blob.
func (n *Node) Rotten(digest string) bool {
	b, err := os.ReadFile(n.Blob(digest))
	return err == nil && fmt.Sprintf("sha256:%x", sha256.Sum256(b)) != digest
}

// Rot changes one byte of a stored blob behind the node's back, or cuts off its
// second half, and returns what puts it right again.
func (n *Node) Rot(digest string, cut bool) (mend func() error, err error) {
	path := n.Blob(digest)
	whole, err := os.ReadFile(path)
	if err != nil || len(whole) == 0 {
		return nil, fmt.Errorf("no blob to damage: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	half := int64(len(whole) / 2)
	if cut {
		err = f.Truncate(half)
	} else {
		_, err = f.WriteAt([]byte{whole[half] ^ 1}, half)
	}
	return func() error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, os.ErrNotExist) { // the node has found it
			return nil
		}
		if err != nil {
			return err
		}
		_, err = f.WriteAt(whole[half:], half)
		return errors.Join(err, f.Close())
	}, errors.Join(err, f.Close())
}

// Log is the file that the node's processes write to.
func (n *Node) Log() string { return filepath.Join(n.rig.cfg.Dir, fmt.Sprintf("n%d.log", n.number)) }
