package gateway

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/protobuf/proto"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
	"github.com/isthmus-mesh/isthmus/internal/strictproto"
)

// A control stream carries frames: the body's length (uint16, big endian) and a LinkMessage.
const (
	// maxControl bounds a frame's body.
	maxControl = 32 << 10
	// capacityChunk is how many services one Capacity names: two labels of 63 bytes each and a count stay within maxControl.
	capacityChunk = 200

	controlHeader = 2
)

var controlLimits = strictproto.Limits{Bytes: maxControl, Depth: 4, Repeated: 256}

// controlError says what is wrong with what the peer says on a control stream.
type controlError struct{ err error }

func (e *controlError) Error() string { return "control stream: " + e.err.Error() }
func (e *controlError) Unwrap() error { return e.err }

// encodeControl returns m's frame.
func encodeControl(m *streamv1.LinkMessage) ([]byte, error) {
	frame, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(make([]byte, controlHeader), m)
	if err != nil {
		return nil, err
	}
	body := len(frame) - controlHeader
	if body > maxControl {
		return nil, fmt.Errorf("message of %d bytes: at most %d", body, maxControl)
	}
	binary.BigEndian.PutUint16(frame, uint16(body))
	return frame, nil
}

// readControl reads one frame; buf is scratch space of maxControl bytes. io.EOF means a clean end. What the peer got wrong is a
// *controlError.
func readControl(r io.Reader, buf []byte) (*streamv1.LinkMessage, error) {
	var header [controlHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(header[:]))
	if size > maxControl {
		return nil, &controlError{fmt.Errorf("frame of %d bytes: at most %d", size, maxControl)}
	}
	body := buf[:size]
	if _, err := io.ReadFull(r, body); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	m := new(streamv1.LinkMessage)
	if err := strictproto.Unmarshal(body, m, controlLimits); err != nil {
		return nil, &controlError{err}
	}
	if m.GetMessage() == nil {
		return nil, &controlError{errors.New("empty message")}
	}
	return m, nil
}

// controlWriter sends on a control stream. Safe for concurrent use. It never blocks: on a connection that moves nothing the
// stream's credit ends, and then messages are not sent, and the caller knows.
type controlWriter struct {
	mu     sync.Mutex
	stream lane // guarded by mu
}

// send queues m. False: not now (quic.ErrWouldBlock), or never again.
func (w *controlWriter) send(m *streamv1.LinkMessage) bool {
	frame, err := encodeControl(m)
	if err != nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stream.TryWriteAll(frame) == nil
}

func probe(seq uint64) *streamv1.LinkMessage {
	return &streamv1.LinkMessage{Message: &streamv1.LinkMessage_Probe{Probe: &streamv1.Probe{Seq: seq}}}
}

func probeReply(seq uint64) *streamv1.LinkMessage {
	return &streamv1.LinkMessage{Message: &streamv1.LinkMessage_ProbeReply{ProbeReply: &streamv1.Probe{Seq: seq}}}
}

func drainingMessage() *streamv1.LinkMessage {
	return &streamv1.LinkMessage{Message: &streamv1.LinkMessage_Draining{Draining: &streamv1.Draining{}}}
}

func capacityMessage(c *streamv1.Capacity) *streamv1.LinkMessage {
	return &streamv1.LinkMessage{Message: &streamv1.LinkMessage_Capacity{Capacity: c}}
}
