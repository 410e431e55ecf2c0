package access

import (
	"strings"
	"unicode/utf8"
)

// MaxTarget is how long a request target may be, in bytes. A longer one has no normal form.
const MaxTarget = 8 << 10

// PathForm says how a path reads.
type PathForm uint8

// A path reads in one way, in none, or in more than one.
const (
	PathNormal PathForm = iota
	PathBad
	PathAmbiguous
)

// NormalPath returns the normal form of the path of a request target: what every server takes for the same resource is spelled alike. It is
// idempotent, and allocates nothing for a path that is in normal form.
//
// What is one reading and what is two goes by what servers do with what they are sent, of these four: nginx, Go's net/http, Tomcat, and
// Node (with Express, or with new URL).
//
//	target                      read as                                                    because
//	/a?x, http://h/a?x          /a                                                         RFC 9112, section 3.2: origin and absolute form
//	http://h, http://h?x        /                                                          RFC 9110, section 4.2.3
//	*, host:port, a/b, ""       bad: there is no path                                      RFC 9112, section 3.2
//	http://u@h/, http://h\@i/   bad: who finds which authority in it is not known
//	/%61dmin, /a%24b            /admin, /a$b                                               all four decode before they look
//	/a%c3%a9, /aé               /a%C3%A9                                                   the same bytes
//	/a%2, /a%zz, /%u002e        bad                                                        all four refuse it, or guess
//	/%c0%af, /%ff               bad: not UTF-8, or in a form longer than needed            decoders that took it for "/" were many
//	more than MaxTarget         bad
//	/%00, /%0a, raw controls    bad                                                        nginx and Tomcat refuse, C libraries end a string
//	/a//b                       /a/b                                                       nginx and Tomcat merge, ServeMux redirects
//	//a/b                       ambiguous                                                  new URL reads a host
//	/a/./b, /a/../b, /a/..      ambiguous                                                  nginx, Tomcat and new URL resolve, ServeMux redirects,
//	                                                                                       Express and handlers without a mux take it as it is
//	/%2e%2e/b, /.%2E/b          ambiguous                                                  as if it were not encoded, for all but Express
//	/a%2fb                      ambiguous                                                  "/" for nginx; for Go's URL.Path, not for its mux; Tomcat refuses
//	/a\b, /a%5cb                ambiguous                                                  "/" for new URL, and for Tomcat where it is allowed
//	/a;x=1/b, /a/..;/b, /a%3bb  ambiguous                                                  Tomcat cuts parameters off, before it looks for "..";
//	                                                                                       others don't; a proxy before it may decode "%3b"
//	/%252e, /%2525, /%25%32%65  ambiguous                                                  who decodes twice sees something else
//	/a#b                        ambiguous                                                  nginx ends the path there, Go does not, Tomcat refuses
//	/a/, /a.                    /a/, /a.                                                   other names, to all four but Express: see below
//
// Sources: nginx.org/en/docs/http/ngx_http_core_module.html (location, merge_slashes) and src/http/ngx_http_parse.c
// (ngx_http_parse_complex_uri); net/http, type ServeMux, and net/url, type URL; Tomcat's org.apache.catalina.connector.CoyoteAdapter
// (postParseRequest, parsePathParameters, normalize) and its options allowBackslash and encodedSolidusHandling; url.spec.whatwg.org (path
// state); expressjs.com/en/api.html (express.Router: caseSensitive, strict). Dots and spaces at the end of a name, which Windows drops, and
// letters that look like others are left alone.
//
// Where policies have rules with paths, an ambiguous one is refused outright, and a bad one matches each Deny rule with paths and no Allow
// rule with paths. Express, by default, knows neither case nor a slash at the end: neither do Deny rules.
func NormalPath(target string) (string, PathForm) {
	if target == "" || len(target) > MaxTarget {
		return "", PathBad
	}
	if target[0] != '/' {
		var ok bool
		if target, ok = cutOrigin(target); !ok {
			return "", PathBad
		}
	}
	if k := strings.IndexByte(target, '?'); k >= 0 {
		target = target[:k]
	}
	switch {
	case target == "":
		return "/", PathNormal
	case simple(target):
		return target, PathNormal
	}
	path, form := normalPath(target)
	if len(path) > MaxTarget { // escapes are longer than what they stand for
		return "", PathBad
	}
	return path, form
}

// simple tells of most paths, and quickly, that they are in normal form: they have no escapes, and no segment that begins with a dot.
func simple(p string) bool {
	var odd, after byte // after a slash, neither another may come nor a dot
	for k := range len(p) {
		c := class[p[k]]
		odd |= c&isOther | c&after
		after = (c & isSlash) * (isSlash | isDot)
	}
	return odd == 0
}

// class says of each byte what simple makes of it.
var class = func() (t [256]byte) {
	for c := range t {
		switch {
		case c == '/':
			t[c] = isSlash
		case c == '.':
			t[c] = isDot
		case !plain[c]:
			t[c] = isOther
		}
	}
	return t
}()

const (
	isSlash byte = 1 << iota
	isDot
	isOther
)

// cutOrigin returns what follows scheme and authority of a target in absolute form. Any other form has no path: "*", an authority.
func cutOrigin(target string) (string, bool) {
	scheme, rest, ok := strings.Cut(target, "://")
	if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		return "", false
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	for k := range end {
		// A host and a port, and no more: who reads "user@", "\" or an escape here may find another end of the authority.
		if c := rest[k]; !isAlnum(c) && !strings.ContainsRune("-._~[]:", rune(c)) {
			return "", false
		}
	}
	return rest[end:], end > 0
}

// normalPath is NormalPath for what begins with "/" (or "#"), and has no query.
func normalPath(p string) (string, PathForm) {
	var (
		out       []byte // nil while p[:k] is what would be written
		ambiguous bool
		slash     bool // the last byte written is "/"
		dots      = -1 // how many dots the segment consists of; -1: of other things too
		percent   int  // how many bytes of "%XX" the decoded path could end in: it would decode again
	)
	for k := 0; k < len(p); {
		start := k
		c := p[k]
		k++
		if plain[c] && c != '.' { // nearly all there is
			if percent > 0 {
				percent, ambiguous = again(percent, c, ambiguous)
			}
			slash, dots = false, -1
			if out != nil {
				out = append(out, c)
			}
			continue
		}
		escaped := c == '%'
		if escaped {
			if k+2 > len(p) || !isHex(p[k]) || !isHex(p[k+1]) {
				return "", PathBad
			}
			c = unhex(p[k])<<4 | unhex(p[k+1])
			k += 2
		}
		size := 1 // of the character, in bytes
		switch {
		case c < ' ', c == 0x7f, c == ' ' && !escaped:
			return "", PathBad
		case c == '/' && !escaped:
			if dots == 1 || dots == 2 {
				ambiguous = true
			}
			percent = 0
			if slash {
				// At the beginning it may be read as "//host".
				ambiguous = ambiguous || start == 1
				out = begin(out, p[:start])
				continue
			}
			slash, dots = true, 0
			if out != nil {
				out = append(out, c)
			}
			continue
		case c == '/', c == '\\', c == ';', c == '#' && !escaped:
			ambiguous = true
		case c >= utf8.RuneSelf:
			var ok bool
			if size, k, ok = char(p, start); !ok {
				return "", PathBad
			}
		}
		if percent > 0 {
			percent, ambiguous = again(percent, c, ambiguous)
		}
		if c == '%' {
			percent = 1
		}
		if c == '.' {
			if dots >= 0 {
				dots++
			}
		} else {
			dots = -1
		}
		slash = false
		switch {
		case plain[c] && !escaped, !plain[c] && isNormalEscape(p[start:k], size):
			if out != nil {
				out = append(out, p[start:k]...)
			}
		case plain[c]:
			out = append(begin(out, p[:start]), c)
		default:
			out = begin(out, p[:start])
			for at := start; at < k; {
				b, n := byteAt(p, at)
				out = append(out, '%', upperHex[b>>4], upperHex[b&15])
				at += n
			}
		}
	}
	if dots == 1 || dots == 2 {
		ambiguous = true
	}
	switch {
	case ambiguous:
		return "", PathAmbiguous
	case out != nil:
		return string(out), PathNormal
	default:
		return p, PathNormal
	}
}

// again follows what a second decoding would take for an escape: "%" and two hexadecimal digits, or "%u".
func again(percent int, c byte, ambiguous bool) (int, bool) {
	switch {
	case percent == 1 && (c == 'u' || c == 'U'), percent == 2 && isHex(c):
		return 0, true
	case percent == 1 && isHex(c):
		return 2, ambiguous
	default:
		return 0, ambiguous
	}
}

// begin returns out, or a copy of what was as it should be so far.
func begin(out []byte, soFar string) []byte {
	if out != nil {
		return out
	}
	return append(make([]byte, 0, len(soFar)+64), soFar...)
}

// char reads a character outside ASCII, escaped or not, and returns how many bytes it has and where it ends.
func char(p string, start int) (size, end int, ok bool) {
	var buf [utf8.UTFMax]byte
	var ends [utf8.UTFMax]int
	n := 0
	for at := start; n < len(buf) && at < len(p); n++ {
		b, width := byteAt(p, at)
		if width == 0 {
			break
		}
		at += width
		buf[n], ends[n] = b, at
	}
	r, size := utf8.DecodeRune(buf[:n])
	if r == utf8.RuneError && size <= 1 {
		return 0, 0, false // overlong forms, surrogates, halves
	}
	return size, ends[size-1], true
}

// byteAt returns the byte at k, decoded if it is an escape, and how much it takes; 0 if it is no sound escape.
func byteAt(p string, k int) (b byte, width int) {
	if p[k] != '%' {
		return p[k], 1
	}
	if k+3 > len(p) || !isHex(p[k+1]) || !isHex(p[k+2]) {
		return 0, 0
	}
	return unhex(p[k+1])<<4 | unhex(p[k+2]), 3
}

// isNormalEscape tells whether s is size escapes in upper case.
func isNormalEscape(s string, size int) bool {
	if len(s) != 3*size {
		return false
	}
	for k := range len(s) {
		if c := s[k]; k%3 == 0 && c != '%' || k%3 != 0 && 'a' <= c {
			return false
		}
	}
	return true
}

const upperHex = "0123456789ABCDEF"

// plain are the characters that stand for themselves in a normal form, "/" apart: pchar of RFC 3986 without ";".
var plain = func() (t [256]bool) {
	for c := range 128 {
		t[c] = isAlnum(byte(c)) || strings.IndexByte("-._~!$&'()*+,=:@", byte(c)) >= 0
	}
	return t
}()

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isHex(c byte) bool {
	return 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F' || '0' <= c && c <= '9'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	default:
		return c - '0'
	}
}
