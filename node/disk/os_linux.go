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
