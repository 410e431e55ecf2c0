// Package datagram is how datagrams travel on a stream that TLS runs on, and how they wait where they can't go on.
//
// A datagram session is a TLS session between two sidecars whose stream carries more than TLS's own records (RFC 8446 section 5.1):
// between them stand records of another content type, each with one sealed datagram. To TLS they aren't there. Who carries the stream can
// tell the two apart without reading either: a gateway takes sealed datagrams off the stream and across as QUIC datagrams, where one that is
// lost delays no other, and puts them back on the far side. Only the sidecars hold the keys (package sidecar/datagram).
//
// The gateway and the sidecar use it. A Reader belongs to one goroutine; a Queue is safe for concurrent use.
package datagram

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// Header is what precedes a record's body: its type, a version, and its length (uint16, big endian). TLS has the same.
	Header = 5
	// MaxBody bounds the body of a datagram's record: the length has no more room. What is sealed in it is a UDP payload of up to 65,507
	// bytes and 28 more.
	MaxBody = 1<<16 - 1
	// maxTLS bounds the body of a TLS record (RFC 8446 section 5.2).
	maxTLS = 1<<14 + 256
)

// What begins a datagram's record: a content type that TLS has not got (RFC 8446 appendix B.1 goes up to 24, and RFC 7983 lets DTLS have up
// to 63), and our version of it.
const (
	contentType  = 0xd6
	majorVersion = 1
	minorVersion = 0
)

// The content types of TLS that a stream may carry, change_cipher_spec to application_data.
const (
	firstTLS = 20
	lastTLS  = 23
)

// Error says what is wrong with a record that somebody sent.
type Error struct{ Reason string }

// Error returns the reason.
func (e *Error) Error() string { return "datagram stream: " + e.Reason }

// AppendHeader appends the header of a record with a sealed datagram of size bytes.
func AppendHeader(dst []byte, size int) []byte {
	return append(dst, contentType, majorVersion, minorVersion, byte(size>>8), byte(size)) //nolint:gosec // G115: the two bytes of a length
}

// ParseHeader reads a record's header: whether a datagram follows, and of which length the body is.
func ParseHeader(h []byte) (isDatagram bool, size int, err error) {
	size = int(binary.BigEndian.Uint16(h[3:Header]))
	switch {
	case h[0] == contentType:
		if h[1] != majorVersion || h[2] != minorVersion {
			return false, 0, &Error{fmt.Sprintf("datagram of version %d.%d: want %d.%d", h[1], h[2], majorVersion, minorVersion)}
		}
		return true, size, nil
	case h[0] < firstTLS || h[0] > lastTLS:
		return false, 0, &Error{fmt.Sprintf("record of type %d: neither TLS's nor a datagram", h[0])}
	case size > maxTLS:
		return false, 0, &Error{fmt.Sprintf("TLS record of %d bytes: at most %d", size, maxTLS)}
	default:
		return false, size, nil
	}
}

// Record is one record as it stands on the stream, its header included.
type Record struct {
	Datagram bool
	Bytes    []byte
}

// Body returns what follows the header.
func (r Record) Body() []byte { return r.Bytes[Header:] }

// Reader takes records off a stream.
type Reader struct {
	from *bufio.Reader
	last int // bytes of the TLS record that was returned, which are still to be passed over
}

// readAhead is what a Reader reads at once, in bytes: some of the datagrams of usual size that came together, or a whole TLS record.
const readAhead = Header + maxTLS

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader { return &Reader{from: bufio.NewReaderSize(r, readAhead)} }

// Next returns the next record. That of TLS holds until the next call; a datagram is the caller's. io.EOF comes between two records alone; the
// error of what is no record is an *Error.
func (r *Reader) Next() (Record, error) {
	_, _ = r.from.Discard(r.last) // it is there
	r.last = 0
	header, err := r.from.Peek(Header)
	if err != nil {
		if errors.Is(err, io.EOF) && len(header) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return Record{}, err
	}
	isDatagram, size, err := ParseHeader(header)
	if err != nil {
		return Record{}, err
	}
	if isDatagram {
		out := Record{Datagram: true}
		out.Bytes, err = ReadFull(r.from, nil, Header+size)
		return out, err
	}
	b, err := r.from.Peek(Header + size)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	r.last = len(b)
	return Record{Bytes: b}, err
}

// firstPiece is what is reserved for a datagram that hasn't come yet, in bytes: one of usual size. What is longer gets as much as is there, and
// then twice as much as has come, again and again: who says a length in five bytes makes nobody reserve that.
const firstPiece = 2 << 10

// ReadFull reads size bytes into buf, which it makes larger, or anew, as they come. io.ErrUnexpectedEOF: there were fewer.
func ReadFull(from *bufio.Reader, buf []byte, size int) ([]byte, error) {
	n := 0
	for {
		if piece := min(max(firstPiece, n+from.Buffered(), 2*n), size); cap(buf) < piece {
			buf = append(make([]byte, 0, piece), buf[:n]...)
		}
		buf = buf[:min(cap(buf), size)]
		m, err := io.ReadFull(from, buf[n:])
		n += m
		switch {
		case errors.Is(err, io.EOF):
			return buf[:n], io.ErrUnexpectedEOF
		case err != nil:
			return buf[:n], err
		case n == size:
			return buf, nil
		}
	}
}
