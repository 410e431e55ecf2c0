package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/isthmus-mesh/isthmus/internal/drain"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/sidecar/host"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Limits of what applications send us, and of what others send to ours.
const (
	maxHeaderBytes    = 64 << 10
	maxHeaders        = 100
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 60 * time.Second
	maxHops           = 10 // sidecars that a request passes, our own included
)

// Outbound carries what the own application calls.
type Outbound struct {
	resolver     *resolver
	health       *balance.Health[topology.Target]
	pace         *balance.Pace[topology.Target]
	sessions     *session.Set
	udp          *udpSessions
	tallies      tallies
	metrics      *metrics
	tracer       trace.Tracer
	propagator   propagation.TextMapPropagator
	log          *slog.Logger
	requestLevel slog.Level
	now          func() time.Time
	self         func() topology.Self

	// Of captured connections.
	connectTo   func(ctx context.Context, address string) (net.Conn, error)
	original    func(net.Conn) (netip.AddrPort, error)
	passThrough bool

	proxy   *httputil.ReverseProxy
	servers []*http.Server // all of them, to be shut down
	streams streams[*call]
	work    drain.Drain // requests, and connections that no http.Server looks after any more

	mu      sync.RWMutex
	budgets map[topology.ServiceName]*balance.Budget // guarded by mu
	hedges  map[topology.ServiceName]*balance.Hedges // guarded by mu
}

// init makes what is made of the other fields.
func (o *Outbound) init() {
	o.budgets = make(map[topology.ServiceName]*balance.Budget)
	o.hedges = make(map[topology.ServiceName]*balance.Hedges)
	o.proxy = &httputil.ReverseProxy{
		Rewrite:        o.rewrite,
		Transport:      o,
		BufferPool:     newBuffers(),
		ModifyResponse: o.modifyResponse,
		ErrorHandler:   o.answerError,
		ErrorLog:       slog.NewLogLogger(o.log.Handler(), slog.LevelDebug),
	}
}

func (o *Outbound) budget(s topology.ServiceName) *balance.Budget {
	o.mu.RLock()
	b := o.budgets[s]
	o.mu.RUnlock()
	if b != nil {
		return b
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if b = o.budgets[s]; b == nil {
		b = new(balance.Budget)
		o.budgets[s] = b
	}
	return b
}

// destinationOf says where a request goes: as the listener's connection was made for, or as the request itself says.
type destinationOf func(*http.Request) (topology.Query, *Failure)

// named is the destination of a request to the explicit proxy: by its absolute-form target, or its Host.
func named(r *http.Request) (topology.Query, *Failure) {
	if r.URL.Scheme != "" && r.URL.Scheme != "http" {
		return topology.Query{}, fail(http.StatusBadRequest, CodeBadTarget, "this proxy carries http:// in absolute form, not %.16q: ask for a tunnel (CONNECT)", r.URL.Scheme)
	}
	q, err := host.Parse(r.Host, 80)
	return q, nameFailure(r.Host, err)
}

func nameFailure(name string, err error) *Failure {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, host.ErrNotMesh):
		return fail(http.StatusBadGateway, CodeNotMesh, "%.253q is not in the mesh: this is the proxy of a service mesh and carries calls to *.svc.clusterset.local and *.svc.cluster.local only; set no_proxy for others", name)
	default:
		return &Failure{Status: http.StatusBadRequest, Code: CodeBadTarget, Text: err.Error(), Err: err}
	}
}

// fixed is the destination of requests on a connection that was made for q. A Host that names another service is a
// mistake; one that is no name of the mesh is the application's own affair.
func fixed(q topology.Query) destinationOf {
	return func(r *http.Request) (topology.Query, *Failure) {
		if f := agrees(r.Host, q.Service); f != nil {
			return q, f
		}
		return q, nil
	}
}

// agrees refuses an authority that names another service of the mesh.
func agrees(authority string, want topology.ServiceName) *Failure {
	name := authority
	if h, _, err := net.SplitHostPort(authority); err == nil {
		name = h
	}
	if s, _, err := host.Name(name); err == nil && s != want {
		return fail(http.StatusMisdirectedRequest, CodeMisdirected, "Host says %s, but this connection is to %s", s, want)
	}
	return nil
}

// handler serves requests to destinations that where finds.
func (o *Outbound) handler(where destinationOf) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { o.serve(w, r, where) })
}

func (o *Outbound) serve(w http.ResponseWriter, r *http.Request, where destinationOf) {
	done, ok := o.work.Add()
	if !ok {
		ending().write(w, r)
		return
	}
	defer done()
	q, failure := where(r)
	ctx, c := o.begin(r, q)
	ctx, cancel := within(ctx, timeoutOf(r.Header))
	defer cancel()
	if isGRPC(r) {
		ctx, c.endStream = context.WithCancelCause(ctx)
		defer c.endStream(nil)
		defer o.streams.leave(c)
	}
	if r.ProtoMajor == 2 {
		c.writer = w
	}
	r = r.WithContext(ctx)
	whole := false
	defer func() {
		if !whole && c.failure == nil { // a panic is on its way: what was promised to the application won't come
			c.status = 0
			switch {
			case expired(ctx):
				c.failure = tooLate(q, "")
			case ctx.Err() != nil:
				c.status = statusClientClosed
			}
		}
		o.end(r, c)
	}()
	if failure == nil {
		failure = checkHead(r)
	}
	if failure == nil {
		var err error
		if c.plan, err = o.resolver.plan(ctx, q); err != nil {
			failure, _ = errors.AsType[*Failure](err)
		}
	}
	if failure != nil {
		c.failure, c.status = failure, failure.Status
		closeAfterConnect(w, r)
		failure.write(w, r)
		whole = true
		return
	}
	if r.ProtoMajor == 1 {
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/1 servers have it
	}
	dropForeignUpgrade(r)
	o.proxy.ServeHTTP(quietWriter{w}, r)
	whole = true
}

// checkHead refuses what no hop should carry further, in either direction.
func checkHead(r *http.Request) *Failure {
	// A CONNECT that is carried as a request becomes a tunnel at the application, or, worse, does not: its body has no framing, and
	// what is in it would be read as requests of whomever it likes. Tunnels are opened at the proxy, and end there (connect).
	if r.Method == http.MethodConnect {
		return fail(http.StatusNotImplemented, CodeUnsupported, "CONNECT is served by the sidecar's proxy, over HTTP/1.1, and is not carried to applications")
	}
	// HTTP/2 takes in a query what would end the request line of HTTP/1.1 (RFC 9112 section 3).
	if strings.ContainsFunc(r.URL.RawQuery, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return fail(http.StatusBadRequest, CodeBadTarget, "the query holds a space or a control character: encode it")
	}
	n := 0
	for _, values := range r.Header {
		n += len(values)
	}
	if n > maxHeaders {
		return fail(http.StatusRequestHeaderFieldsTooLarge, CodeTooLarge, "%d headers: at most %d", n, maxHeaders)
	}
	if hops(r) >= maxHops {
		return fail(http.StatusLoopDetected, CodeLoop, "this request has passed %d sidecars: it goes in circles", maxHops)
	}
	return nil
}

// closeAfterConnect ends the connection of a CONNECT that is refused: what its sender lets follow is no request.
func closeAfterConnect(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodConnect {
		w.Header().Set("Connection", "close")
	}
}

// hops returns how many sidecars r has passed. One that can't be read has passed too many.
func hops(r *http.Request) int {
	v := r.Header.Get(headerHops)
	if v == "" {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		return maxHops
	}
	return n
}

// dropForeignUpgrade ignores an offer to switch to another version of HTTP (RFC 9110 section 7.8 allows that): inside of it,
// requests would travel that nobody on the way has seen.
func dropForeignUpgrade(r *http.Request) {
	for token := range strings.SplitSeq(strings.Join(r.Header.Values("Upgrade"), ","), ",") {
		token, _, _ = strings.Cut(token, ";")                                                                      // parameters have no meaning here, and must not hide the name
		token = strings.ToLower(strings.Trim(token, " \t\""))                                                      // quoted it is no token, but somebody may read it as one
		if strings.HasPrefix(token, "h2") || strings.HasPrefix(token, "http") || strings.HasPrefix(token, "tls") { // h2c-14 is one too
			r.Header.Del("Upgrade")
			r.Header.Del("Http2-Settings")
			return
		}
	}
}

// rewrite makes the request that goes out.
func (o *Outbound) rewrite(p *httputil.ProxyRequest) {
	restore(p)
	n := hops(p.In)
	stripOwn(p.Out.Header)
	p.Out.Header.Set(headerHops, strconv.Itoa(n+1))
	if expect := p.Out.Header.Get("Expect"); expect != "" {
		p.Out.Header.Set(headerExpect, expect)
	}
	o.propagator.Inject(p.Out.Context(), propagation.HeaderCarrier(p.Out.Header))
	q := callOf(p.Out.Context()).query
	p.Out.URL.Scheme, p.Out.URL.Host = "https", host.String(q)
	p.Out.Host = p.In.Host // empty (HTTP/1.0): that of the URL
}

// modifyResponse sees every response before the application does.
func (o *Outbound) modifyResponse(resp *http.Response) error {
	ctx := resp.Request.Context()
	c := callOf(ctx)
	c.status = resp.StatusCode
	stripOwn(resp.Header, headerError)
	stripTrailers(resp, c)
	if c.endStream != nil {
		grpcAnswer(resp, func(err error) *Failure { return o.brokenOff(ctx, c, err) })
		o.streams.enter(ctx, c)
	}
	if len(resp.Trailer) > 0 {
		resp.Header.Del("Content-Length") // HTTP/2 has both, HTTP/1.1 trailers only without
	}
	stream(resp)
	return nil
}

// answerError answers when no response came, or one that can't be passed on.
func (o *Outbound) answerError(w http.ResponseWriter, r *http.Request, err error) {
	c := callOf(r.Context())
	if expired(r.Context()) {
		err = tooLate(c.query, "")
	} else if errors.Is(context.Cause(r.Context()), errEnding) {
		err = &Failure{Status: http.StatusBadGateway, Code: CodeAnswerLost, Text: errEnding.Error() + ", and " + host.String(c.query) + " had not answered yet", Err: errEnding}
	} else if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	failure, ok := errors.AsType[*Failure](err)
	if !ok {
		failure = &Failure{Status: http.StatusBadGateway, Code: CodeAnswerLost, Text: "the answer of " + host.String(c.query) + " can't be passed on: " + err.Error(), Err: err}
	}
	c.failure, c.status = failure, failure.Status
	failure.write(w, r)
}

// notOpened takes in that no session could be opened for a request. What a pool tried was counted when it failed (opened).
func (o *Outbound) notOpened(ctx context.Context, c choice, err error, alone bool) {
	if ctx.Err() != nil || !alone {
		return
	}
	o.count(c.candidate.Target, err)
}

// opened takes in the outcome of a dial that a pool made.
func (o *Outbound) opened(to session.Destination, err error, wanted bool) {
	result := "ok"
	if err != nil {
		result = "failed"
		if refusal, ok := errors.AsType[*preamble.Refusal](err); ok {
			result = preamble.Label(refusal.Code)
		}
	}
	o.metrics.dials.WithLabelValues(to.Cluster.String(), to.Service.String(), result).Inc()
	if err != nil && wanted {
		o.count(to.Target(), err)
	}
}

// count counts a failed dial against its target.
func (o *Outbound) count(t topology.Target, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, session.ErrClosed) {
		return
	}
	verdict := balance.Broken
	if e, ok := errors.AsType[*session.Error](err); ok {
		verdict = e.Verdict
	}
	o.failed(t, verdict, err)
}

// lost takes in that a session failed a request. A session that is lost counts once, however many requests were on it.
func (o *Outbound) lost(c choice, inner *session.Requests, lost *session.LostError) {
	switch {
	case lost.Polite:
		c.pool.Condemn(inner)
	case lost.Alone || inner.Blame():
		o.failed(c.candidate.Target, balance.Broken, lost)
	}
}

func (o *Outbound) failed(t topology.Target, v balance.Verdict, err error) {
	ejected := o.health.Failed(o.now(), t, v, err.Error())
	o.resolver.setback(t)
	if !ejected {
		return
	}
	o.leave(t)
	o.metrics.ejections.WithLabelValues(t.Cluster.String(), t.Service.String()).Inc()
	o.log.Info("copy ejected", slog.String("target", place(t)), slog.String("service", t.Service.String()), slog.Int("port", int(t.Port)), slog.Any("error", err))
}

// answeredWith takes in with what an application answered. A gateway's error is an answer, and the caller's; but it brings nobody back.
func (o *Outbound) answeredWith(c choice, status int, took time.Duration) {
	if !gatewayError(status) {
		c.score.Answered(took)
		o.answered(c)
		return
	}
	c.score.Failed()
	if c.probe {
		o.failed(c.candidate.Target, balance.Broken, fmt.Errorf("answered a probe with %d", status))
	}
}

// answered takes in that a copy answered.
func (o *Outbound) answered(c choice) {
	if len(c.plan.trials) > 0 {
		c.plan.proved(o.now(), c.candidate.Target)
	}
	o.alive(c.candidate.Target)
}

// alive takes in that a copy is well.
func (o *Outbound) alive(t topology.Target) {
	if o.health.Succeeded(o.now(), t) {
		o.log.Info("copy is back", slog.String("target", place(t)), slog.String("service", t.Service.String()), slog.Int("port", int(t.Port)))
	}
}

// newServer returns an HTTP server for connections of the own application. They are to be given to it behind http1.Strict.
func (o *Outbound) newServer(h http.Handler) *http.Server {
	s := newServer(h, o.log)
	s.IdleTimeout = idleTimeout
	s.Protocols.SetUnencryptedHTTP2(true)
	s.ConnState = func(c net.Conn, state http.ConnState) {
		if raw, ok := c.(interface{ Raw() }); ok && state == http.StateHijacked {
			raw.Raw()
		}
	}
	o.servers = append(o.servers, s)
	return s
}
