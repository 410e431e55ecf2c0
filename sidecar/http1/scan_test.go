package http1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// strict are requests that everybody reads alike.
var strict = []string{
	"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"GET / HTTP/1.0\r\n\r\n",
	"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
	"POST /x HTTP/1.1\r\nHost: a\r\ncontent-length:0\r\n\r\n",
	"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n00A;x=y\r\n0123456789\r\n0\r\n\r\n",
	"PUT /x HTTP/1.1\r\nHost: a\r\nTrailer: X\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\nX: y\r\n\r\n",
	"GET http://a.b:80/x?y HTTP/1.1\r\nHost: A.b\r\n\r\n",
	"GET http://a.b HTTP/1.1\r\nHost: a.b:80\r\n\r\n",
	"GET http://[::1]:81/ HTTP/1.1\r\nHost: [::1]:81\r\n\r\n",
	"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
	"CONNECT a.b:443 HTTP/1.1\r\nHost: a.b:443\r\n\r\n\x16\x03\x01 and what follows",
	"CONNECT a.b:443 HTTP/1.1\r\nHost: a.b\r\n\r\n",
	"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04",
	"GET / HTTP/1.1\r\nHost: a\r\nX: \t caf\xc3\xa9 \t\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
}

// refused are the published ways to be read in two ways, and a few of our own.
var refused = map[string]string{
	"CL and TE":                 "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"TE and CL":                 "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
	"two equal CL":              "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
	"two CL":                    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
	"CL list":                   "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello",
	"CL plus":                   "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello",
	"CL hex":                    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello",
	"CL empty":                  "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\n",
	"CL negative":               "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
	"CL too large":              "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999999999\r\n\r\n",
	"TE other":                  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
	"TE identity":               "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
	"TE vertical tab":           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
	"two TE":                    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"TE in HTTP/1.0":            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"space before colon":        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"folded":                    "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
	"bare LF in head":           "GET / HTTP/1.1\nHost: a\n\n",
	"bare LF ends head":         "GET / HTTP/1.1\r\nHost: a\r\n\n",
	"bare CR":                   "GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
	"NUL":                       "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
	"no Host":                   "GET / HTTP/1.1\r\n\r\n",
	"two Hosts":                 "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
	"Host disagrees":            "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
	"Host's port disagrees":     "GET http://a:81/ HTTP/1.1\r\nHost: a\r\n\r\n",
	"CONNECT disagrees":         "CONNECT a:443 HTTP/1.1\r\nHost: b:443\r\n\r\n",
	"CONNECT with body":         "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 1\r\n\r\nx",
	"user in authority":         "GET http://b@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
	"two spaces":                "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
	"HTTP/0.9":                  "GET /\r\n",
	"HTTP/1.2":                  "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
	"empty line first":          "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"chunk bare LF":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
	"chunk too long":            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
	"chunk size 0x":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
	"chunk size negative":       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
	"chunk extension CR":        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\rx\r\nhello\r\n0\r\n\r\n",
	"chunk size too large":      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1000000000000000\r\n",
	"framing in trailers":       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
	"preface in the middle":     "GET / HTTP/1.1\r\nHost: a\r\n\r\nPRI * HTTP/2.0\r\n\r\n",
	"second is bad":             "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
	"smuggled behind a length":  "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /admin HTTP/1.1\nHost: a\n\n",
	"header without a colon":    "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
	"tab in the target":         "GET /\t HTTP/1.1\r\nHost: a\r\n\r\n",
	"path without a slash":      "GET x HTTP/1.1\r\nHost: a\r\n\r\n",
	"a line that does not end":  "GET /" + strings.Repeat("x", maxHead) + " HTTP/1.1\r\nHost: a\r\n\r\n",
	"more headers than allowed": "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", maxFields) + "\r\n",
}

func TestScan(t *testing.T) {
	for _, r := range strict {
		for size := 1; size <= len(r); size++ { // however it arrives
			if n, err := scanIn(r, size); err != nil || n != len(r) {
				t.Fatalf("%q in pieces of %d: got %d, %v", r, size, n, err)
			}
		}
	}
	for name, r := range refused {
		for _, size := range []int{1, 2, 3, 7, len(r)} {
			n, err := scanIn(r, size)
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Errorf("%s, in pieces of %d: got %v, want it refused", name, size, err)
				continue
			}
			// What may be read up to there must never hold the whole head that was refused.
			if whole(t, r[:n]) > whole(t, r)-1 && name != "a line that does not end" && !strings.HasPrefix(name, "chunk") && name != "framing in trailers" {
				t.Errorf("%s, in pieces of %d: a whole request in %q", name, size, r[:n])
			}
		}
	}
}

// whole counts the heads that even the most lenient reader finds.
func whole(t *testing.T, s string) int {
	t.Helper()
	s = strings.ReplaceAll(s, "\r\n", "\n")
	return strings.Count(s, "\n\n") + strings.Count(s, "GET /\n")
}

func scanIn(r string, size int) (int, error) {
	var s scanner
	total := 0
	for len(r) > 0 {
		n, err := s.scan([]byte(r[:min(size, len(r))]))
		total += n
		if err != nil {
			return total, err
		}
		r = r[min(size, len(r)):]
	}
	return total, nil
}

// TestServer shows what net/http makes of a refusal: a 400 for the head, and nothing of it to the handler.
func TestServer(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 10)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		seen <- r.URL.Path
	})}
	done := make(chan error)
	go func() { done <- s.Serve(listener{ln}) }()
	defer func() {
		_ = s.Close()
		if ended := <-done; !errors.Is(ended, http.ErrServerClosed) {
			t.Error(ended)
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err = io.WriteString(c, "GET /good HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("got %v %v", resp, err)
	}
	_ = resp.Body.Close()
	if _, err = io.WriteString(c, "POST /bad HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if resp, err = http.ReadResponse(r, nil); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Fatalf("got %v %v, want 400", resp, err)
	}
	_ = resp.Body.Close()
	if got := <-seen; got != "/good" || len(seen) != 0 {
		t.Errorf("the handler saw %q and %d more", got, len(seen))
	}
}

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return Strict(c), nil
}

// FuzzAgrees holds what is accepted against net/http's parser: it must find the same requests, ending at the same bytes.
func FuzzAgrees(f *testing.F) {
	for _, r := range strict {
		f.Add([]byte(r))
	}
	for _, r := range refused {
		if len(r) < 1000 {
			f.Add([]byte(r))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var s scanner
		var ends []int
		for i := range data {
			before := s.state
			if n, err := s.scan(data[i : i+1]); err != nil || n != 1 {
				return // refused: nothing to compare
			}
			if before != requestLine && s.state == requestLine {
				ends = append(ends, i+1)
			}
			if s.state == opaque {
				return
			}
		}
		r := bytes.NewReader(data)
		b := bufio.NewReader(r)
		for _, end := range ends {
			req, err := http.ReadRequest(b)
			if err != nil {
				return // stricter than us: net/http answers 400 by itself
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			if got := len(data) - r.Len() - b.Buffered(); got != end {
				t.Fatalf("net/http ends a request at %d, we at %d", got, end)
			}
		}
	})
}
