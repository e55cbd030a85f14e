package disk

import (
	"os"

	"golang.org/x/sys/unix"
)

// beginFlush asks the kernel to begin writing out n bytes of f at off. It
// promises nothing, waits for nothing, and leaves errors to the sync.
func beginFlush(f *os.File, off, n int64) {
	_ = unix.SyncFileRange(int(f.Fd()), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// noReuse tells the kernel that f is read once: its pages need not displace
// those that clients read.
func noReuse(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_NOREUSE) }

// dropCache makes the next read of f come from the disk, as far as can be.
func dropCache(f *os.File) { _ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) }
