//go:build !linux

package disk

import "os"

// beginFlush does nothing: only Linux can begin to write out a part of a file.
func beginFlush(*os.File, int64, int64) {}

// noReuse and dropCache do nothing: only Linux takes this advice everywhere.
func noReuse(*os.File)   {}
func dropCache(*os.File) {}
