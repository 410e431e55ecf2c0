package http1

import (
	"net"
	"sync/atomic"
)

// Conn is a connection of which only strict requests can be read.
type Conn struct {
	net.Conn
	scanner scanner // only Read uses it, and err
	err     error
	raw     atomic.Bool
}

// Strict watches what is read from c, from its first byte.
func Strict(c net.Conn) *Conn { return &Conn{Conn: c} }

// Raw ends the watch: the connection is no longer HTTP/1 (it was hijacked).
func (c *Conn) Raw() { c.raw.Store(true) }

// Read reads; an *Error when the request that is under way is not strict. What is read until then is never a whole request.
func (c *Conn) Read(p []byte) (int, error) {
	if c.raw.Load() {
		return c.Conn.Read(p)
	}
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.Conn.Read(p)
	if n == 0 || c.raw.Load() {
		return n, err
	}
	if n, c.err = c.scanner.scan(p[:n]); c.err != nil {
		err = c.err
	}
	return n, err
}

// CloseWrite ends the sending half; of a connection that has none, all.
func (c *Conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return c.Close()
}

// SetLinger passes on what a TCP connection offers.
func (c *Conn) SetLinger(sec int) error {
	if l, ok := c.Conn.(interface{ SetLinger(sec int) error }); ok {
		return l.SetLinger(sec)
	}
	return nil
}

// Abort ends the connection so that its peer sees it break.
func (c *Conn) Abort(error) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
