package preamble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/isthmus-mesh/isthmus/internal/strictproto"
)

const (
	version = 1
	header  = 3 // version, length

	// MaxFrame bounds a frame's body, so that reading one never needs more memory than this. A Preamble needs at most 901.
	MaxFrame = 1024
)

// limits of a frame's body. MaxPath bounds the only repeated field.
var limits = strictproto.Limits{Bytes: MaxFrame, Depth: 2, Repeated: MaxPath}

// Error says what is wrong with a frame that somebody sent.
type Error struct {
	Reason string
	Err    error // what found it, if anything did
}

// Error returns the reason.
func (e *Error) Error() string { return "preamble: " + e.Reason }

// Unwrap returns what found it.
func (e *Error) Unwrap() error { return e.Err }

// appendFrame appends m's frame. The caller has seen to it that m fits.
func appendFrame(dst []byte, m proto.Message) []byte {
	start := len(dst)
	dst = append(dst, version, 0, 0)
	dst, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, m)
	body := len(dst) - start - header
	if err != nil || body > MaxFrame {
		// Names are ASCII and bounded, texts are cut to fit: no message of ours gets here.
		panic(fmt.Sprintf("preamble: unencodable frame of %d bytes: %v", body, err))
	}
	binary.BigEndian.PutUint16(dst[start+1:], uint16(body)) //nolint:gosec // G115: at most MaxFrame
	return dst
}

// readFrame reads one frame into m and nothing past it.
func readFrame(r io.Reader, m proto.Message) error {
	var buf [header + MaxFrame]byte
	if _, err := io.ReadFull(r, buf[:1]); err != nil {
		return err // io.EOF when nothing came
	}
	if buf[0] != version {
		return &Error{Reason: fmt.Sprintf("version %d: want %d", buf[0], version)}
	}
	if _, err := io.ReadFull(r, buf[1:header]); err != nil {
		return cut(err)
	}
	size := int(binary.BigEndian.Uint16(buf[1:header]))
	if size > MaxFrame {
		return &Error{Reason: fmt.Sprintf("frame of %d bytes: at most %d", size, MaxFrame)}
	}
	body := buf[header : header+size]
	if _, err := io.ReadFull(r, body); err != nil {
		return cut(err)
	}
	if err := strictproto.Unmarshal(body, m, limits); err != nil {
		return &Error{Reason: err.Error(), Err: err}
	}
	return nil
}

// cut names an end of stream in the middle of a frame for what it is.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
