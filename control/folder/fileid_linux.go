package folder

import (
	"io/fs"
	"syscall"
)

// fileID tells a file that was put in place of another from one that was not touched.
type fileID struct{ device, inode uint64 }

func idOf(info fs.FileInfo) fileID {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return fileID{uint64(s.Dev), s.Ino} //nolint:unconvert // not an uint64 on every architecture
	}
	return fileID{}
}
