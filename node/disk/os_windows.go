package disk

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// openFile opens path so that others may rename or remove it meanwhile. That
// is how os.Root opens files, and os.Open does not.
func openFile(path string, flag int) (*os.File, error) {
	r, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return r.OpenFile(filepath.Base(path), flag, 0o600)
}

// rename moves from over to, which may be open; both are below root. os.Root
// asks for POSIX semantics, which os.Rename does not; a file system without
// them refuses while somebody reads the old file.
func rename(root, from, to string) error {
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	if from, err = filepath.Rel(root, from); err != nil {
		return err
	}
	if to, err = filepath.Rel(root, to); err != nil {
		return err
	}
	return r.Rename(from, to)
}

// syncFolder does nothing: Windows has no way to sync a folder, and NTFS keeps
// names in its own log.
func syncFolder(string) error { return nil }

// space returns what the file system of path can still take from this user,
// and its size.
func space(path string) (free, total uint64, err error) {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, 0, err
	}
	if err := windows.GetDiskFreeSpaceEx(p, &free, &total, nil); err != nil {
		return 0, 0, os.NewSyscallError("GetDiskFreeSpaceEx", err)
	}
	return free, total, nil
}

func isFull(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}
