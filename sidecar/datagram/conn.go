package datagram

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/isthmus-mesh/isthmus/internal/datagram"
)

// Conn is what TLS runs over where datagrams travel beside it: TLS reads and writes its own records alone. Until Start it is the connection
// itself. Reading belongs to one goroutine at a time, as TLS has it; writing is safe for concurrent use.
type Conn struct {
	net.Conn

	started bool          // of the reader
	from    *bufio.Reader // of the reader
	left    int           // of the reader: bytes of a TLS record that haven't been read
	body    []byte        // of the reader: the last datagram
	deliver atomic.Pointer[func([]byte)]

	mu sync.Mutex // held while a record is written
}

// readAhead is what is read from the connection at once, in bytes.
const readAhead = 16 << 10

// NewConn returns c as a Conn.
func NewConn(c net.Conn) *Conn { return &Conn{Conn: c} }

// Start makes what is read from now on records. Called by who reads, or before anybody does.
func (c *Conn) Start() {
	if !c.started {
		c.started, c.from = true, bufio.NewReaderSize(c.Conn, readAhead)
	}
}

// Deliver has f called, by whoever reads, with the body of each datagram from now on; it holds until f returns. Before, they are dropped.
func (c *Conn) Deliver(f func([]byte)) { c.deliver.Store(&f) }

// Read reads TLS's records, and delivers the datagrams that stand between them.
func (c *Conn) Read(p []byte) (int, error) {
	if !c.started {
		return c.Conn.Read(p)
	}
	for c.left == 0 {
		header, err := c.from.Peek(datagram.Header)
		if err != nil {
			if errors.Is(err, io.EOF) && len(header) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		isDatagram, size, err := datagram.ParseHeader(header)
		if err != nil {
			return 0, err
		}
		if !isDatagram {
			c.left = datagram.Header + size
			break
		}
		_, _ = c.from.Discard(datagram.Header) // it is there
		if c.body, err = datagram.ReadFull(c.from, c.body, size); err != nil {
			return 0, io.ErrUnexpectedEOF
		}
		if deliver := c.deliver.Load(); deliver != nil {
			(*deliver)(c.body)
		}
	}
	n, err := c.from.Read(p[:min(len(p), c.left)])
	if c.left -= n; err != nil && errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Write writes what TLS writes: whole records.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Conn.Write(p)
}

// SetLinger passes on what a TCP connection offers.
func (c *Conn) SetLinger(sec int) error {
	if l, ok := c.Conn.(interface{ SetLinger(sec int) error }); ok {
		return l.SetLinger(sec)
	}
	return nil
}

// CloseWrite ends the sending half; of a connection that has none, all.
func (c *Conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}
