package rig

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ioctlShutdown = 0x8004587d // EXT4_IOC_SHUTDOWN
	noLogFlush    = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH: the journal's tail is lost too
)

// shutdown has a file system write nothing any more, as if its power were gone.
func shutdown(folder string) error {
	f, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer f.Close()
	how := uint32(noLogFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctlShutdown, uintptr(unsafe.Pointer(&how))); errno != 0 {
		return fmt.Errorf("cut the power of %s: %w", folder, errno)
	}
	return nil
}

func allocate(f *os.File, size int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, size)
	if err == unix.ENOSPC { // the file system needs some of it for itself; what is left is little enough
		err = unix.Fallocate(int(f.Fd()), 0, 0, size-size/64)
	}
	return err
}

// mayMount reports whether this is root of the machine, not of a namespace.
func mayMount() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	var inside, outside, n uint64
	if err == nil {
		_, err = fmt.Sscan(string(b), &inside, &outside, &n)
	}
	return err == nil && outside == 0 && n > 1 && os.Geteuid() == 0
}
