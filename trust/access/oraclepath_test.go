package access_test

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/isthmus-mesh/isthmus/trust/access"
)

var (
	origin    = regexp.MustCompile(`^(?i:https?)://[A-Za-z0-9.~_:\[\]-]+($|[/?#].*)`)
	badEscape = regexp.MustCompile(`%($|[^0-9A-Fa-f]|[0-9A-Fa-f]($|[^0-9A-Fa-f]))`)
	twice     = regexp.MustCompile(`%([0-9A-Fa-f]{2}|[uU])`)
	slashes   = regexp.MustCompile(`/+`)
)

type pathForm struct {
	path string
	form access.PathForm
}

var pathsRead sync.Map // so that millions of requests for a few paths take seconds

// plainPath is the normal form of a path.
func plainPath(target string) (string, access.PathForm) {
	v, ok := pathsRead.Load(target)
	if !ok {
		path, form := readPath(target)
		v, _ = pathsRead.LoadOrStore(target, pathForm{path, form})
	}
	return v.(pathForm).path, v.(pathForm).form
}

// readPath reads one, step by step.
func readPath(target string) (string, access.PathForm) {
	path := target
	if m := origin.FindStringSubmatch(target); m != nil {
		if path = m[1]; path == "" || path[0] == '?' {
			path = "/"
		}
	} else if !strings.HasPrefix(target, "/") {
		return "", access.PathBad
	}
	path, _, _ = strings.Cut(path, "?")
	decoded, err := url.PathUnescape(path)
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	if err != nil || badEscape.MatchString(path) || !utf8.ValidString(decoded) || strings.ContainsFunc(decoded, control) || strings.Contains(path, " ") || len(target) > access.MaxTarget {
		return "", access.PathBad
	}
	lower := strings.ToLower(path)
	segments := strings.Split(decoded, "/")
	if strings.HasPrefix(path, "//") || strings.ContainsAny(decoded, `;\`) || strings.Contains(path, "#") || strings.Contains(lower, "%2f") || twice.MatchString(decoded) ||
		slices.Contains(segments, ".") || slices.Contains(segments, "..") {
		return "", access.PathAmbiguous
	}
	normal := &strings.Builder{}
	for _, c := range []byte(slashes.ReplaceAllString(decoded, "/")) {
		if strings.IndexByte("/-._~!$&'()*+,=:@0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", c) >= 0 {
			normal.WriteByte(c)
		} else {
			normal.WriteString("%" + strings.ToUpper(string("0123456789abcdef"[c>>4])+string("0123456789abcdef"[c&15])))
		}
	}
	return normal.String(), access.PathNormal
}
