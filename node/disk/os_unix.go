//go:build unix

package disk

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// openFile opens path; others may rename or remove it meanwhile.
func openFile(path string, flag int) (*os.File, error) {
	return os.OpenFile(path, flag, 0o600)
}

// rename moves from over to; both are below root.
func rename(_, from, to string) error { return os.Rename(from, to) }

// syncFolder makes the names in the folder at path durable.
func syncFolder(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = f.Sync()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// space returns what the file system of path can still take from an
// unprivileged writer, and its size.
func space(path string) (free, total uint64, err error) {
	var st unix.Statfs_t
	for {
		err = unix.Statfs(path, &st)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return 0, 0, os.NewSyscallError("statfs", err)
	}
	return uint64(st.Bavail) * uint64(st.Bsize), uint64(st.Blocks) * uint64(st.Bsize), nil
}

func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}
