// Package http1 refuses HTTP/1 requests that can be read in two ways, before anybody reads them at all.
//
// net/http parses leniently where RFC 9112 lets it (bare LF, obs-fold, both Content-Length and Transfer-Encoding, a Host that is
// overruled by the target). Between an application and its sidecar that is harmless; on a path with several parsers it is how
// requests are smuggled. A Conn watches the bytes that net/http is about to read, follows the framing by itself, and ends the
// connection at the first byte that is not strictly right; net/http then answers 400.
//
// The sidecar wraps the connections of its own application. A Conn is used like any net.Conn: one reader, one writer.
package http1

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Limits of a request.
const (
	maxHead    = 72 << 10 // bytes of request line and headers; net/http answers 431 before that
	maxFields  = 100      // headers; likewise trailers
	maxLine    = 4 << 10  // bytes of a chunk's size line, its extensions included
	maxTrailer = 16 << 10 // bytes of trailers
	maxDigits  = 15       // of a length in bytes: the largest hexadecimal one fits an int64, the largest decimal one, too
)

// Error says what is wrong with a request.
type Error struct{ Reason string }

// Error returns the reason.
func (e *Error) Error() string { return "http1: " + e.Reason }

func bad(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// state is what the scanner waits for.
type state uint8

const (
	requestLine state = iota // or the HTTP/2 preface, as the first line
	headerLine               // or the empty line that ends them
	fixedBody
	chunkSize
	chunkData
	chunkEnd    // the CRLF behind it
	trailerLine // or the empty line that ends the message
	opaque      // not HTTP/1 any more
)

// scanner follows the bytes that a client sends. The zero value waits for the first request.
type scanner struct {
	state state
	line  []byte // of the line that is not complete yet
	left  int64  // bytes of body, or of chunk

	first  bool // a request was seen
	size   int  // bytes of head or of trailers
	fields int

	// Of the present head.
	method    string
	target    string
	http10    bool
	hosts     int
	host      string
	lengths   int
	length    int64
	encodings int
}

// scan takes the next bytes. When something is wrong it returns how many of them may still be read: the request is
// incomplete without the others.
func (s *scanner) scan(p []byte) (int, error) {
	for done := 0; done < len(p); {
		rest := p[done:]
		switch s.state {
		case opaque:
			return len(p), nil
		case fixedBody, chunkData:
			n := int(min(s.left, int64(len(rest))))
			s.left -= int64(n)
			done += n
			if s.left == 0 {
				s.bodyRead()
			}
			continue
		default: // a line
		}
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			end = len(rest) - 1
		}
		s.line = append(s.line, rest[:end+1]...)
		if err := s.bounded(end + 1); err != nil {
			return done, err
		}
		if rest[end] == '\n' {
			if err := s.whole(); err != nil {
				return done + end, err // without its end the line means nothing to anybody
			}
			s.line = s.line[:0]
		}
		done += end + 1
	}
	return len(p), nil
}

// bounded refuses a line, or lines, that grow too long.
func (s *scanner) bounded(n int) error {
	limit := maxLine
	switch s.state {
	case requestLine, headerLine:
		limit = maxHead
	case trailerLine:
		limit = maxTrailer
	default:
		s.size = 0
	}
	s.size += n
	if s.size > limit || len(s.line) > limit {
		return bad("more than %d bytes", limit)
	}
	return nil
}

// whole judges the line that is complete.
func (s *scanner) whole() error {
	line, ok := bytes.CutSuffix(s.line, []byte("\r\n"))
	if !ok {
		return bad("a line ends in a bare LF")
	}
	if bytes.IndexByte(line, '\r') >= 0 {
		return bad("a bare CR")
	}
	switch s.state {
	case requestLine:
		return s.request(line)
	case headerLine:
		if len(line) == 0 {
			return s.head()
		}
		return s.header(line)
	case chunkSize:
		return s.chunk(line)
	case chunkEnd:
		if len(line) != 0 {
			return bad("a chunk is longer than it says")
		}
		s.state = chunkSize
		return nil
	default: // trailerLine
		if len(line) == 0 {
			s.next()
			return nil
		}
		s.fields++
		if s.fields > maxFields {
			return bad("more than %d trailers", maxFields)
		}
		name, _, err := field(line)
		if err != nil {
			return err
		}
		switch name {
		case "content-length", "transfer-encoding", "host", "trailer":
			return bad("%s in trailers", name)
		}
		return nil
	}
}

func (s *scanner) request(line []byte) error {
	if !s.first && string(line) == "PRI * HTTP/2.0" {
		s.state = opaque
		return nil
	}
	method, rest, _ := bytes.Cut(line, []byte(" "))
	target, version, _ := bytes.Cut(rest, []byte(" "))
	if !isToken(method) {
		return bad("the method is no token")
	}
	if len(target) == 0 || !clean(target) || bytes.IndexByte(target, '\t') >= 0 {
		return bad("the target is empty or holds control bytes")
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		s.http10 = true
	default:
		return bad("%.16q is neither HTTP/1.1 nor HTTP/1.0", version)
	}
	s.first = true
	s.method, s.target = string(method), string(target)
	s.state = headerLine
	return nil
}

func (s *scanner) header(line []byte) error {
	s.fields++
	if s.fields > maxFields {
		return bad("more than %d headers", maxFields)
	}
	name, value, err := field(line)
	if err != nil {
		return err
	}
	switch name {
	case "host":
		s.hosts++
		s.host = value
	case "content-length":
		s.lengths++
		s.length, err = digits(value, 10)
	case "transfer-encoding":
		s.encodings++
		if !strings.EqualFold(value, "chunked") {
			return bad("Transfer-Encoding %.32q: only chunked is taken", value)
		}
	}
	return err
}

// head judges the headers together, and finds where the body ends.
func (s *scanner) head() error {
	switch {
	case s.lengths > 1:
		return bad("more than one Content-Length")
	case s.encodings > 1:
		return bad("more than one Transfer-Encoding")
	case s.lengths > 0 && s.encodings > 0:
		return bad("both Content-Length and Transfer-Encoding")
	case s.encodings > 0 && s.http10:
		return bad("Transfer-Encoding in HTTP/1.0")
	case s.hosts > 1:
		return bad("more than one Host")
	case s.hosts == 0 && !s.http10:
		return bad("no Host")
	}
	if err := s.authority(); err != nil {
		return err
	}
	switch {
	case s.method == "CONNECT":
		if s.lengths+s.encodings > 0 {
			return bad("a body with CONNECT")
		}
		s.state = opaque // if it is refused, the connection is closed
	case s.encodings > 0:
		s.state = chunkSize
	case s.length > 0:
		s.state, s.left = fixedBody, s.length
	default:
		s.next()
	}
	return nil
}

// authority refuses a Host that disagrees with the target.
func (s *scanner) authority() error {
	target := s.target
	if s.method != "CONNECT" {
		scheme, rest, absolute := strings.Cut(target, "://")
		if strings.HasPrefix(target, "/") || target == "*" {
			return nil
		}
		if !absolute || !isToken([]byte(scheme)) {
			return bad("the target is neither a path nor a URL")
		}
		target = rest
		if i := strings.IndexAny(target, "/?#"); i >= 0 {
			target = target[:i]
		}
	}
	if target == "" || strings.ContainsAny(target, "@/?#") {
		return bad("the target's authority is empty, or more than host and port")
	}
	if s.hosts == 0 {
		return nil
	}
	fallback := "80"
	if s.method == "CONNECT" {
		fallback = port(target) // some clients leave it out of Host
	}
	if !strings.EqualFold(withoutPort(target), withoutPort(s.host)) || cmp.Or(port(target), fallback) != cmp.Or(port(s.host), fallback) {
		return bad("the target says %.64q, Host says %.64q", target, s.host)
	}
	return nil
}

func withoutPort(authority string) string {
	return strings.TrimSuffix(strings.TrimSuffix(authority, port(authority)), ":")
}

// port returns the port that is written out; an empty one counts as the default.
func port(authority string) string {
	i := strings.LastIndexByte(authority, ':')
	if i < 0 || strings.HasSuffix(authority, "]") {
		return ""
	}
	return authority[i+1:]
}

func (s *scanner) chunk(line []byte) error {
	number, extension, _ := bytes.Cut(line, []byte(";"))
	if !clean(extension) {
		return bad("control bytes in a chunk's extension")
	}
	n, err := digits(string(number), 16)
	if err != nil {
		return err
	}
	s.state, s.left = chunkData, n
	if n == 0 {
		s.state, s.size, s.fields = trailerLine, 0, 0
	}
	return nil
}

func (s *scanner) bodyRead() {
	if s.state == chunkData {
		s.state = chunkEnd
		return
	}
	s.next()
}

// next waits for the next request.
func (s *scanner) next() { *s = scanner{first: true, line: s.line[:0]} }

// field splits a header line; the name comes back in lower case.
func field(line []byte) (name, value string, err error) {
	n, v, ok := bytes.Cut(line, []byte(":"))
	switch {
	case line[0] == ' ' || line[0] == '\t':
		return "", "", bad("a folded header")
	case !ok:
		return "", "", bad("a header without a colon")
	case !isToken(n):
		return "", "", bad("a header's name is no token")
	case !clean(v):
		return "", "", bad("control bytes in the value of %.32q", n)
	}
	return strings.ToLower(string(n)), strings.Trim(string(v), " \t"), nil
}

func digits(s string, base int64) (int64, error) {
	if s == "" || len(s) > maxDigits {
		return 0, bad("length %.20q: want 1 to %d digits", s, maxDigits)
	}
	var n int64
	for i := range len(s) {
		c, d := s[i], int64(-1)
		switch {
		case c >= '0' && c <= '9':
			d = int64(c - '0')
		case base == 16 && c >= 'a' && c <= 'f':
			d = int64(c-'a') + 10
		case base == 16 && c >= 'A' && c <= 'F':
			d = int64(c-'A') + 10
		}
		if d < 0 {
			return 0, bad("length %.20q: want digits", s)
		}
		n = n*base + d
	}
	return n, nil
}

// clean reports whether p holds no control bytes but tabs.
func clean(p []byte) bool {
	for _, c := range p {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

func isToken(p []byte) bool {
	for _, c := range p {
		if !httpguts.IsTokenRune(rune(c)) {
			return false
		}
	}
	return len(p) > 0
}
