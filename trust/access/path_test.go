package access_test

import (
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust/access"
)

// TestNormalPath is the table of bypasses, and of what only looks like one. No want: the form says all.
func TestNormalPath(t *testing.T) {
	const ok, bad, two = access.PathNormal, access.PathBad, access.PathAmbiguous
	for _, c := range []struct {
		target, want string
		form         access.PathForm
	}{
		// Forms of a target.
		{"/", "/", ok},
		{"/a/b", "/a/b", ok},
		{"/a?x=/../b", "/a", ok},
		{"/a??", "/a", ok},
		{"/?", "/", ok},
		{"http://host/a/b?x", "/a/b", ok},
		{"HTTPS://HOST:8443/a", "/a", ok},
		{"http://[::1]:80/a", "/a", ok},
		{"http://host", "/", ok},
		{"http://host?x", "/", ok},
		{"http://host#x", "", two},
		{"http://host//a", "", two},
		{"http:///a", "", bad},
		{"http:/a", "", bad},
		{"http:a", "", bad},
		{"ftp://host/a", "", bad},
		{"http://user@host/a", "", bad},
		{`http://host\@other/a`, "", bad},
		{"http://ho%2fst/a", "", bad},
		{"://host/a", "", bad},
		{"*", "", bad},
		{"host:443", "", bad},
		{"a/b", "", bad},
		{"", "", bad},
		{"?x", "", bad},
		{" /a", "", bad},
		{`\a`, "", bad},
		{"%2fa", "", bad},
		{"/a#b", "", two},
		{"/#/../b", "", two},
		{"#", "", bad},

		// What is decoded, and what stays encoded.
		{"/%61dmin", "/admin", ok},
		{"/%41%5A%7a%7E%2d%2E%5f", "/AZz~-._", ok},
		{"/a%24b", "/a$b", ok},
		{"/a$b&c'd(e)f*g+h,i=j!k:l@m", "/a$b&c'd(e)f*g+h,i=j!k:l@m", ok},
		{"/a%20b", "/a%20b", ok},
		{"/%7bid%7d", "/%7Bid%7D", ok},
		{"/{id}", "/%7Bid%7D", ok},
		{"/a\"<>[]^`|b", "/a%22%3C%3E%5B%5D%5E%60%7Cb", ok},
		{"/100%25", "/100%25", ok},
		{"/100%25/a", "/100%25/a", ok},
		{"/100%25%20off", "/100%25%20off", ok},
		{"/a%3fb", "/a%3Fb", ok},
		{"/a%23b", "/a%23b", ok},
		{"/caf%c3%a9", "/caf%C3%A9", ok},
		{"/caf%C3%A9", "/caf%C3%A9", ok},
		{"/café", "/caf%C3%A9", ok},
		{"/caf\xc3%A9", "/caf%C3%A9", ok},
		{"/%F0%9F%98%80", "/%F0%9F%98%80", ok},

		// Escapes that are none.
		{"/%", "", bad},
		{"/%2", "", bad},
		{"/%zz", "", bad},
		{"/%u002e%u002e/a", "", bad},
		{"/%%32e", "", bad},
		{"/a% 20", "", bad},
		{"/a%+2e", "", bad},

		// Bytes that are none.
		{"/%00", "", bad},
		{"/a%00.html", "", bad},
		{"/a\x00b", "", bad},
		{"/a%0d%0aHost:x", "", bad},
		{"/a\tb", "", bad},
		{"/a b", "", bad},
		{"/a%7f", "", bad},
		{"/a%09", "", bad},

		// Overlong and other bad encodings.
		{"/a%c0%afb", "", bad},
		{"/%c0%ae%c0%ae/a", "", bad},
		{"/%e0%80%af", "", bad},
		{"/%f0%80%80%af", "", bad},
		{"/%C1%9C", "", bad},
		{"/%ed%a0%80", "", bad},
		{"/%ff", "", bad},
		{"/%c3", "", bad},
		{"/%c3/a", "", bad},
		{"/\xc0\xaf", "", bad},
		{"/%f4%90%80%80", "", bad},

		// Slashes.
		{"/a//b", "/a/b", ok},
		{"/a///b//", "/a/b/", ok},
		{"/a//", "/a/", ok},
		{"//a", "", two},
		{"//", "", two},
		{"///a", "", two},
		{"/a/", "/a/", ok},
		{"/a%2fb", "", two},
		{"/a%2Fb", "", two},
		{"/%2f%2fa", "", two},
		{"/%2F..%2Fa", "", two},
		{`/a\b`, "", two},
		{"/a%5cb", "", two},
		{`/..\a`, "", two},
		{"/a/..%5c..%5cb", "", two},

		// Dot segments.
		{"/.", "", two},
		{"/..", "", two},
		{"/./a", "", two},
		{"/a/./b", "", two},
		{"/a/../b", "", two},
		{"/a/..", "", two},
		{"/a/.", "", two},
		{"/a/../", "", two},
		{"/../../etc", "", two},
		{"/%2e%2e/a", "", two},
		{"/%2E%2e/a", "", two},
		{"/.%2e/a", "", two},
		{"/%2e./a", "", two},
		{"/a/%2e", "", two},
		{"/a/%2e?x", "", two},
		{"/a//../b", "", two},
		{"/a/..//b", "", two},

		// What is no dot segment.
		{"/...", "/...", ok},
		{"/..a", "/..a", ok},
		{"/a..", "/a..", ok},
		{"/a./b", "/a./b", ok},
		{"/.well-known/x", "/.well-known/x", ok},
		{"/%2ewell-known/x", "/.well-known/x", ok},
		{"/a.b/c..d", "/a.b/c..d", ok},
		{"/..%20/a", "/..%20/a", ok},

		// Parameters.
		{"/a;x=1/b", "", two},
		{"/a;", "", two},
		{"/a;jsessionid=1", "", two},
		{"/a/..;/b", "", two},
		{"/a/;/../b", "", two},
		{"/a%3bx", "", two},
		{"/a%3Bx", "", two},
		{"/;/a", "", two},

		// What decodes again.
		{"/%252e%252e/a", "", two},
		{"/%25%32%65", "", two},
		{"/%25%32e", "", two},
		{"/%252fa", "", two},
		{"/%2525", "", two},
		{"/%2541", "", two},
		{"/%25252e", "", two},
		{"/%25c0%25af", "", two},
		{"/%25u002e", "", two},
		{"/a%253b", "", two},
		{"/a%2500", "", two},
		{"/%25/2e", "/%25/2e", ok},
		{"/%25g0", "/%25g0", ok},

		// Length.
		{"/" + strings.Repeat("a", access.MaxTarget-1), "/" + strings.Repeat("a", access.MaxTarget-1), ok},
		{"/" + strings.Repeat("a", access.MaxTarget), "", bad},

		{"/" + strings.Repeat("]", access.MaxTarget/2), "", bad},

		// The worse of two.
		{"/../%00", "", bad},
		{"/a;/%zz", "", bad},
	} {
		if got, form := access.NormalPath(c.target); got != c.want || form != c.form {
			t.Errorf("%.60q: %.60q, %d; want %.60q, %d", c.target, got, form, c.want, c.form)
		}
	}
}

// TestPathsReference: docs/reference/paths.md says what is so.
func TestPathsReference(t *testing.T) {
	page, err := os.ReadFile("../../docs/reference/paths.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	words := func(cell string) (all []string) {
		for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
			all = append(all, m[1])
		}
		return all
	}
	rows := 0
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		targets, want, form := words(cells[1]), words(cells[2]), access.PathNormal
		switch {
		case strings.Contains(cells[2], "**ambiguous**"):
			form = access.PathAmbiguous
		case strings.Contains(cells[2], "**bad**"):
			form = access.PathBad
		case strings.Contains(cells[2], "as they are"):
			want = targets
		}
		for k, target := range targets {
			rows++
			wanted := ""
			if form == access.PathNormal {
				wanted = want[min(k, len(want)-1)]
			}
			if got, is := access.NormalPath(target); got != wanted || is != form {
				t.Errorf("%q: %q, %d; the page says %s", target, got, is, cells[2])
			}
		}
	}
	if rows < 30 {
		t.Errorf("only %d paths are on the page", rows)
	}
	for _, reason := range []access.Reason{access.AmbiguousPath, access.BadPath} {
		if !strings.Contains(string(page), "`"+reason.String()+"`") {
			t.Errorf("the page says nothing of %s", reason)
		}
	}
}

func TestNormalPathAllocatesNothing(t *testing.T) {
	for _, target := range []string{"/", "/api/v1/orders/1234?x=y", "/caf%C3%A9/a%20b", "http://host/.well-known/a.b", "/a/../b", "/%zz"} {
		if n := testing.AllocsPerRun(100, func() { access.NormalPath(target) }); n > 0 {
			t.Errorf("%.200q: %v allocations", target, n)
		}
	}
}

// forest allows by prefix alone.
func forest(tb testing.TB, prefix string) *access.Set {
	tb.Helper()
	set, err := access.Compile([][]access.Policy{{{
		Name: "ns/p", Rules: []access.Rule{{Name: "r", To: []access.Operation{{Paths: []access.Pattern{{Text: prefix, Kind: access.Prefix}}}}}},
	}}})
	if err != nil {
		tb.Fatal(err)
	}
	return set
}

// FuzzNormalPath: it is idempotent, agrees with net/url, and what has dot segments after any number of decodings passes no rule.
func FuzzNormalPath(f *testing.F) {
	for _, seed := range []string{"/a/b?c", "/%2e%2E/x", "/a;b/..;/c", "/%252e", "//h/p", "/a%c0%afb", "http://h/p", "/caf%c3%a9", `/a\..\b`, "/public/%2e%2e%2fadmin", "*", ""} {
		f.Add(seed)
	}
	caller := spiffeid.RequireFromString("spiffe://eu.test/ns/shop/sa/web")
	root, public := forest(f, "/"), forest(f, "/public/")
	f.Fuzz(func(t *testing.T, target string) {
		normal, form := access.NormalPath(target)
		if form != access.PathNormal {
			if normal != "" {
				t.Fatalf("%.200q is of form %d, and has a path %.200q", target, form, normal)
			}
		} else {
			if again, form := access.NormalPath(normal); again != normal || form != access.PathNormal {
				t.Fatalf("%.200q: %.200q, and then %.200q, %d", target, normal, again, form)
			}
			decoded, err := url.PathUnescape(normal)
			if err != nil || !utf8.ValidString(decoded) || normal[0] != '/' {
				t.Fatalf("%.200q: %.200q does not decode: %v", target, normal, err)
			}
			// The same bytes as net/url reads, but for slashes that are merged.
			if u, err := url.ParseRequestURI(target); err == nil && u.Path != "" {
				segments := slices.DeleteFunc(strings.Split(u.Path, "/"), func(s string) bool { return s == "" })
				if want := slices.DeleteFunc(strings.Split(decoded, "/"), func(s string) bool { return s == "" }); !slices.Equal(segments, want) {
					t.Fatalf("%.200q: %.200q, and for net/url %.200q", target, decoded, u.Path)
				}
			}
		}
		if climbs(target) {
			r := &access.Request{Caller: caller, HTTP: true, Method: "GET", Path: target}
			if root.Decide(r).Allowed || public.Decide(r).Allowed {
				t.Fatalf("%.200q climbs, and is allowed by a prefix", target)
			}
		}
	})
}

// climbs tells whether a path has dot segments after any number of sloppy decodings.
func climbs(target string) bool {
	path, _, _ := strings.Cut(target, "?")
	if _, rest, ok := strings.Cut(path, "://"); ok && path[0] != '/' {
		_, path, _ = strings.Cut(rest, "/")
	}
	for range 10 {
		for segment := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
			name, _, _ := strings.Cut(segment, ";")
			if name == "." || name == ".." {
				return true
			}
		}
		decoded := sloppy(path)
		if decoded == path {
			return false
		}
		path = decoded
	}
	return false
}

// sloppy decodes what it can, and lets the rest stand.
func sloppy(s string) string {
	var b strings.Builder
	for k := 0; k < len(s); k++ {
		if s[k] == '%' && k+3 <= len(s) {
			if c, err := url.PathUnescape(s[k : k+3]); err == nil {
				b.WriteString(c)
				k += 2
				continue
			}
		}
		b.WriteByte(s[k])
	}
	return b.String()
}

func BenchmarkNormalPath(b *testing.B) {
	for _, c := range []struct{ name, target string }{
		{"short", "/api/v1/orders"}, {"escapes", "/caf%C3%A9/a%20b/orders"}, {"long", "/api/" + strings.Repeat("segment-of-16-b/", 12)}, {"not-normal", "/api/v1//%6frders"},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				access.NormalPath(c.target)
			}
		})
	}
}
