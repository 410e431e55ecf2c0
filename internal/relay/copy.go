package relay

import (
	"errors"
	"io"
	"net"
	"sync"
)

// Buffers start small, because most streams carry little, and grow when a read fills them, because bulk pays per call.
var bufferSizes = [...]int{1 << 10, 16 << 10, 256 << 10}

var buffers = [len(bufferSizes)]sync.Pool{}

func getBuffer(level int) *[]byte {
	if b, ok := buffers[level].Get().(*[]byte); ok {
		return b
	}
	return new(make([]byte, bufferSizes[level]))
}

// Copy copies from src to dst until EOF and returns the bytes copied. Between two TCP sockets the kernel splices.
func Copy(dst io.Writer, src io.Reader) (int64, error) {
	if d, ok := dst.(*net.TCPConn); ok {
		if s, ok := src.(*net.TCPConn); ok {
			return d.ReadFrom(s)
		}
	}
	level := 0
	buf := getBuffer(level)
	defer func() { buffers[level].Put(buf) }()
	var total int64
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			w, werr := dst.Write((*buf)[:n])
			total += int64(w)
			if werr != nil {
				return total, werr
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, err
		}
		if n == len(*buf) && level+1 < len(bufferSizes) {
			buffers[level].Put(buf)
			level++
			buf = getBuffer(level)
		}
	}
}
