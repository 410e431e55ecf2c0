package sidecar

import (
	"io"
	"net/http"
	"net/http/httputil"
)

// carryTrailers makes the outgoing request send the trailers that the incoming one announced: ReverseProxy copies their names
// before their values have come.
func carryTrailers(p *httputil.ProxyRequest) {
	if len(p.In.Trailer) == 0 || p.Out.Body == nil {
		p.Out.Trailer = nil
		return
	}
	out := make(http.Header, len(p.In.Trailer))
	for name := range p.In.Trailer {
		if !isOwn(name) {
			out[name] = nil
		}
	}
	if len(out) == 0 {
		p.Out.Trailer = nil
		return
	}
	p.Out.Trailer = out
	p.Out.Body = &trailerBody{ReadCloser: p.Out.Body, in: p.In, out: out}
}

// trailerBody fills out in when the body has ended: net/http sets a request's trailers by then, and sends them after.
type trailerBody struct {
	io.ReadCloser
	in  *http.Request
	out http.Header
}

// Read reads the body.
func (b *trailerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF { // io.Reader's contract is this very value
		for name := range b.out {
			b.out[name] = b.in.Trailer[name]
		}
	}
	return n, err
}

// stripTrailers takes from an answer's trailers what only the mesh may write. They come when the body has ended. One that breaks off ends the
// request's body, too (hush): nobody takes that any more.
func stripTrailers(resp *http.Response, request hushable) {
	stripOwn(resp.Trailer)
	if resp.StatusCode == http.StatusSwitchingProtocols || resp.Body == http.NoBody {
		return // no trailers can come, and the body is a connection
	}
	if _, held := resp.Body.(*heldBody); !held {
		resp.Body = &strippedBody{ReadCloser: resp.Body, resp: resp, request: request}
	}
}

// hushable is a request whose body can be ended.
type hushable interface{ hush() }

// strippedBody strips the trailers of resp when the body has ended: net/http has set them by then.
type strippedBody struct {
	io.ReadCloser
	resp    *http.Response
	request hushable
}

// Read reads the body.
func (b *strippedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF { // io.Reader's contract is this very value
		stripOwn(b.resp.Trailer)
	} else if err != nil {
		b.request.hush()
	}
	return n, err
}
