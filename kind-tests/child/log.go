package child

import (
	"bytes"
	"io"
	"os"
)

// maxTail bounds how much of a log is read for its end.
const maxTail = 64 << 10

// Tail returns the last lines of a log, or why it can't be read.
func Tail(file string, lines int) string {
	f, err := os.Open(file) //nolint:gosec // G304: a log of our own
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }()
	if info, e := f.Stat(); e == nil && info.Size() > maxTail {
		_, _ = f.Seek(-maxTail, io.SeekEnd)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxTail))
	if err != nil {
		return err.Error()
	}
	data = bytes.TrimRight(data, "\n")
	at := len(data)
	for range lines {
		if at = bytes.LastIndexByte(data[:at], '\n'); at < 0 {
			return string(data)
		}
	}
	return string(data[at+1:])
}
