package preamble

import (
	"errors"
	"fmt"
	"io"
	"strings"

	streamv1 "github.com/isthmus-mesh/isthmus/api/stream/v1"
)

const (
	// MaxPath bounds the gateways that a stream crosses: one on each side, and room to say so when somebody adds a third.
	MaxPath = 4
	// maxHop bounds the name of one: a cluster's label, a slash, a gateway's label.
	maxHop = 63 + 1 + 63
	// maxDetail bounds the words of a refusal, in bytes.
	maxDetail = 384
)

// Reply says that a stream is open.
type Reply struct {
	Path []string // the gateways crossed, nearest first: "eu/gateway-0", "us/gateway-1"
}

// Refusal says why a stream was not opened. No byte of the stream reached the destination. It is an error.
type Refusal struct {
	Code   streamv1.Code
	Detail string   // for people; never parsed
	Path   []string // the gateways crossed, nearest first; the last one refused
}

// Error returns the code in words and the detail.
func (r *Refusal) Error() string {
	var b strings.Builder
	b.WriteString(Words(r.Code))
	if r.Detail != "" {
		b.WriteString(": ")
		b.WriteString(r.Detail)
	}
	if len(r.Path) > 0 {
		b.WriteString(" (said by ")
		b.WriteString(r.Path[len(r.Path)-1])
		b.WriteByte(')')
	}
	return b.String()
}

// Is makes errors.Is(err, &Refusal{Code: c}) ask for the code alone.
func (r *Refusal) Is(target error) bool {
	t, ok := target.(*Refusal)
	return ok && t.Code == r.Code && t.Detail == "" && len(t.Path) == 0
}

// Retriable reports whether the call may fare better at another target: true unless the call itself is at fault. It never
// hurts to try, because a refused stream has reached nobody.
func (r *Refusal) Retriable() bool { return r.Code != streamv1.Code_CODE_BAD_PREAMBLE }

// Words says what a code means.
func Words(c streamv1.Code) string {
	switch c {
	case streamv1.Code_CODE_OK:
		return "open"
	case streamv1.Code_CODE_BAD_PREAMBLE:
		return "the stream's opening is malformed"
	case streamv1.Code_CODE_UNKNOWN_CLUSTER:
		return "the cluster is not a peer of this one"
	case streamv1.Code_CODE_LINK_DOWN:
		return "no link to the cluster"
	case streamv1.Code_CODE_NOT_EXPORTED:
		return "the cluster does not export this service and port"
	case streamv1.Code_CODE_NOT_ALLOWED:
		return "the caller may not reach this service"
	case streamv1.Code_CODE_NO_ENDPOINT:
		return "the service has no ready copy there"
	case streamv1.Code_CODE_ENDPOINT_UNREACHABLE:
		return "no copy of the service could be reached"
	case streamv1.Code_CODE_OVERLOADED:
		return "the gateway is overloaded"
	case streamv1.Code_CODE_DRAINING:
		return "the gateway is draining"
	case streamv1.Code_CODE_INTERNAL:
		return "the gateway failed"
	default:
		return fmt.Sprintf("refused with code %d", int32(c))
	}
}

// Label is a code as metrics and logs spell it: "ok", "link_down".
func Label(c streamv1.Code) string {
	s, ok := streamv1.Code_name[int32(c)]
	if !ok {
		return "unknown"
	}
	return strings.ToLower(strings.TrimPrefix(s, "CODE_"))
}

// AppendReply appends r's frame to dst.
func AppendReply(dst []byte, r Reply) []byte {
	return appendFrame(dst, &streamv1.Reply{Code: streamv1.Code_CODE_OK, Path: fitPath(r.Path)})
}

// AppendRefusal appends r's frame to dst. A detail that is too long is cut.
func AppendRefusal(dst []byte, r *Refusal) []byte {
	code := r.Code
	if code == streamv1.Code_CODE_UNSPECIFIED || code == streamv1.Code_CODE_OK {
		code = streamv1.Code_CODE_INTERNAL // a refusal must not read as success
	}
	return appendFrame(dst, &streamv1.Reply{Code: code, Detail: clip(r.Detail, maxDetail), Path: fitPath(r.Path)})
}

// ReadReply reads one frame. A refusal is returned as a *Refusal error, a malformed frame as an *Error. io.EOF means that
// the stream ended before its first byte.
func ReadReply(r io.Reader) (Reply, error) {
	m := new(streamv1.Reply)
	if err := readFrame(r, m); err != nil {
		return Reply{}, err
	}
	if err := check(m); err != nil {
		return Reply{}, &Error{Reason: err.Error(), Err: err}
	}
	if m.GetCode() != streamv1.Code_CODE_OK {
		return Reply{}, &Refusal{Code: m.GetCode(), Detail: m.GetDetail(), Path: m.GetPath()}
	}
	return Reply{Path: m.GetPath()}, nil
}

func check(m *streamv1.Reply) error {
	if m.GetCode() == streamv1.Code_CODE_UNSPECIFIED {
		return errors.New("reply without a code")
	}
	if len(m.GetDetail()) > maxDetail {
		return fmt.Errorf("detail of %d bytes: at most %d", len(m.GetDetail()), maxDetail)
	}
	if len(m.GetPath()) > MaxPath {
		return fmt.Errorf("path of %d gateways: at most %d", len(m.GetPath()), MaxPath)
	}
	for _, hop := range m.GetPath() {
		if hop == "" || len(hop) > maxHop {
			return fmt.Errorf("gateway's name of %d bytes: want 1 to %d", len(hop), maxHop)
		}
	}
	return nil
}

func fitPath(path []string) []string {
	fit := make([]string, 0, MaxPath)
	for _, hop := range path[:min(len(path), MaxPath)] {
		if hop = clip(hop, maxHop); hop != "" {
			fit = append(fit, hop)
		}
	}
	return fit
}

// clip returns at most limit bytes of s, as valid UTF-8.
func clip(s string, limit int) string {
	return strings.ToValidUTF8(s[:min(len(s), limit)], "") // a rune that was cut in two goes as well
}
