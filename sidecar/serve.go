package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/access"
)

// visit is one request to the own application, and what came of it. It belongs to the goroutine that serves the request.
type visit struct {
	*arrival
	guards   *guards // what was served when it came
	to       *topology.InboundPort
	request  access.Request  // as policies and quotas see it
	decision access.Decision // of the policies; the zero one: they were not asked
	quotas   http.Header     // what quotas tell the caller
	started  time.Time
	limited  bool         // the limiter has let it in, and was not told of its answer
	said     atomic.Int64 // how long after started its body was last heard of; as whole, for who carries that to the application
	whole    atomic.Bool  // its body came to its end
	span     trace.Span
	status   int // 0: none was written, or it broke off
	failure  *Failure

	mu     sync.Mutex
	writer http.ResponseWriter // guarded by mu; of a request that came over HTTP/2, until it has been served
}

// hush ends the request's body, unless the request has been served.
func (v *visit) hush() {
	v.mu.Lock()
	defer v.mu.Unlock()
	hush(v.writer)
}

// over says that it has.
func (v *visit) over() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.writer = nil
}

type visitKey struct{}

func visitOf(ctx context.Context) *visit {
	return ctx.Value(visitKey{}).(*visit) // only called for requests that serve made
}

// serve serves one request on an inner session.
func (in *Inbound) serve(w http.ResponseWriter, r *http.Request) {
	a, _ := r.Context().Value(arrivalKey{}).(*arrival)
	if a == nil {
		panic(http.ErrAbortHandler) // run gives the server no other connections
	}
	done, ok := in.work.Add()
	if !ok {
		w.Header().Set(headerOutcome, outcomeUnsent)
		ending().writePlain(w)
		return
	}
	defer done()
	a.served.begin(a.from)
	defer a.served.end(a.from)
	ctx := in.propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	g := in.keeper.present()
	v := &visit{arrival: a, started: in.now(), guards: g, to: g.portOf(a)}
	ctx, v.span = in.tracer.Start(ctx, r.Method+" "+a.service.String(), trace.WithSpanKind(trace.SpanKindServer))
	ctx, cancel := within(context.WithValue(ctx, visitKey{}, v), millisecondsOf(r.Header.Get(headerTimeout)))
	defer cancel()
	r = r.WithContext(ctx)
	if r.ProtoMajor == 2 {
		v.writer = w
		defer v.over()
	}
	if isGRPC(r) {
		defer in.streams.leave(v)
	}
	whole := false
	defer func() {
		if !whole {
			v.status = 0
		}
		in.end(r, v)
	}()
	defer in.door.answered(a.caller)
	if !in.door.ask(a.caller) {
		v.failure = fail(http.StatusServiceUnavailable, CodeOverloaded, "the sidecar of %s carries as many requests as it may: %d, half of them from one caller", a.service, maxRequests)
	} else if v.failure = in.room(v); v.failure == nil {
		defer v.leave(in.now(), 0)
		v.failure = in.check(r, v)
	}
	if v.failure != nil {
		in.refuse(w, r, v)
	} else {
		if r.ProtoMajor == 1 {
			_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/1 servers have it
		}
		dropForeignUpgrade(r)
		in.proxy.ServeHTTP(quietWriter{w}, r)
	}
	whole = true
}

// check says why a request must not reach the application; nil when it may.
func (in *Inbound) check(r *http.Request, v *visit) *Failure {
	if v.to == nil {
		return fail(http.StatusMisdirectedRequest, CodeNotServed, "%s port %d is not served here any more", v.service, v.port)
	}
	if d := in.drills.Of(v.service); d != nil {
		return drillFailure(d, v.service)
	}
	if f := agrees(r.Host, v.service); f != nil {
		return f
	}
	if f := checkHead(r); f != nil {
		return f
	}
	err := in.admit(v.guards, v.arrival)
	if err != nil && !errors.Is(err, errRefused) && !errors.Is(err, errNoRules) {
		return &Failure{Status: http.StatusForbidden, Code: CodeNotAllowed, Err: err, Text: v.peer.ID.String() + " may not call " + v.service.String() + ": " + err.Error()}
	}
	v.decision = in.verdictOf(r, v)
	in.decided(r.Context(), v.arrival, v.to, &v.request, &v.decision)
	if err != nil || !v.decision.Allowed {
		return refusal(v, v.decision)
	}
	if g := v.guards.guard(v.service); g != nil && len(g.quotas) > 0 {
		var over *Failure
		v.quotas, over = in.spend(r.Context(), g, &v.request, v.arrival)
		return over
	}
	return nil
}

// refuse answers in place of the application. What another copy may do better is marked for the caller's sidecar.
func (in *Inbound) refuse(w http.ResponseWriter, r *http.Request, v *visit) {
	v.status = v.failure.Status
	closeAfterConnect(w, r)
	switch v.failure.Code {
	case CodeNotServed, CodeAppDown, CodeOverloaded, CodeDrill, CodeBusy:
		w.Header().Set(headerOutcome, outcomeUnsent)
		v.failure.writePlain(w)
	case CodeAppBroke:
		w.Header().Set(headerOutcome, outcomeSent)
		v.failure.writePlain(w)
	default:
		if errors.Is(v.failure.Err, errNotExported) {
			w.Header().Set(headerOutcome, outcomeElsewhere)
		}
		v.failure.write(w, r)
	}
}

// rewrite makes the request that the application sees. It learns who calls from the header that only this sidecar writes.
func (in *Inbound) rewrite(p *httputil.ProxyRequest) {
	restore(p)
	v := visitOf(p.Out.Context())
	stripOwn(p.Out.Header, headerHops)
	if expect := p.In.Header.Get(headerExpect); expect != "" {
		p.Out.Header.Set("Expect", expect)
	}
	p.Out.Header.Set(headerCaller, v.peer.ID.String())
	tellApp(p.Out.Context(), p.Out.Header)
	in.propagator.Inject(p.Out.Context(), propagation.HeaderCarrier(p.Out.Header))
	p.Out.URL.Scheme, p.Out.URL.Host = "http", v.service.String() // apps puts the address in
	p.Out.Host = p.In.Host
}

// modifyResponse sees every response of the application before the caller does: it can't speak in the mesh's name.
func (in *Inbound) modifyResponse(resp *http.Response) error {
	v := visitOf(resp.Request.Context())
	v.status = resp.StatusCode
	in.evidence(v, resp)
	stripOwn(resp.Header)
	for name, values := range v.quotas {
		if _, own := resp.Header[name]; !own { // the application may have limits of its own
			resp.Header[name] = values
		}
	}
	stripTrailers(resp, v)
	if isGRPC(resp.Request) {
		ctx := resp.Request.Context()
		grpcAnswer(resp, func(error) *Failure {
			if errors.Is(context.Cause(ctx), errEnding) {
				v.failure = ending()
			}
			return v.failure
		})
		in.streams.enter(ctx, v)
	}
	stream(resp)
	return nil
}

// answerError answers when the application did not.
func (in *Inbound) answerError(w http.ResponseWriter, r *http.Request, err error) {
	v := visitOf(r.Context())
	if r.Context().Err() != nil {
		in.abandoned(v, r)
	}
	if expired(r.Context()) {
		err = &Failure{Status: http.StatusGatewayTimeout, Code: CodeAppLate, Text: "the application behind " + v.service.String() + " did not answer before the caller's deadline", Err: errDeadline}
	} else if errors.Is(context.Cause(r.Context()), errEnding) {
		err = &Failure{Status: http.StatusBadGateway, Code: CodeAppBroke, Text: "the sidecar of " + v.service.String() + " ends, and the application had not answered yet", Err: errEnding}
	} else if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	failure, ok := errors.AsType[*Failure](err)
	if !ok {
		failure = &Failure{Status: http.StatusBadGateway, Code: CodeAppBroke, Text: "the application behind " + v.service.String() + " broke off", Err: err}
	}
	v.failure = failure
	in.refuse(w, r, v)
}

// end records a request.
func (in *Inbound) end(r *http.Request, v *visit) {
	took := in.now().Sub(v.started)
	cluster, caller := in.callerOf(v.peer.ID)
	self := in.self()
	var code Code
	if v.failure != nil {
		code = v.failure.Code
	}
	in.metrics.requests.WithLabelValues(inbound, cluster, caller, self.Cluster.String(), v.service.String(),
		portLabel(v.port), codeLabel(v.status), string(code)).Inc()
	in.metrics.duration.WithLabelValues(inbound, self.Cluster.String(), v.service.String()).Observe(took.Seconds())
	if v.span.IsRecording() {
		v.span.SetAttributes(
			attribute.String("http.request.method", r.Method),
			attribute.Int("http.response.status_code", v.status),
			attribute.Int("server.port", int(v.port)),
			attribute.String("isthmus.peer", v.peer.ID.String()),
			attribute.String("isthmus.source.cluster", cluster),
		)
		for _, a := range policyAttrs(&v.decision) {
			v.span.SetAttributes(attribute.String("isthmus."+a.Key, a.Value.String()))
		}
		if v.failure != nil {
			v.span.SetAttributes(attribute.String("error.type", string(code)))
			v.span.SetStatus(codes.Error, v.failure.Text)
		}
	}
	v.span.End()
	if !in.log.Enabled(r.Context(), in.requestLevel) {
		return
	}
	attrs := []slog.Attr{
		slog.String("direction", inbound),
		slog.String("method", r.Method),
		slog.String("service", v.service.String()),
		slog.Int("port", int(v.port)),
		slog.String("caller", v.peer.ID.String()),
		slog.Int("status", v.status),
		slog.Duration("duration", took),
		slog.String("trace_id", v.span.SpanContext().TraceID().String()),
	}
	attrs = append(attrs, policyAttrs(&v.decision)...)
	if v.failure != nil {
		attrs = append(attrs, slog.String("code", string(code)), slog.String("error", v.failure.Text))
		if v.failure.Err != nil { // addresses stay here: the caller may be of another cluster
			attrs = append(attrs, slog.Any("cause", v.failure.Err))
		}
	}
	in.log.LogAttrs(r.Context(), in.requestLevel, "request", attrs...)
}

func (in *Inbound) self() topology.Self {
	if s := in.snapshots.Load(); s != nil {
		return s.Self()
	}
	return topology.Self{}
}

// callerOf returns the cluster and the workload of a caller, as labels: the cluster's name, or its trust domain when no peer has
// it; "namespace/serviceaccount", or the path of another kind of identity.
func (in *Inbound) callerOf(id spiffeid.ID) (cluster, workload string) {
	cluster = id.TrustDomain().Name()
	if g := in.keeper.present(); g != nil {
		if g.of.Self().Domain == id.TrustDomain() {
			cluster = g.of.Self().Cluster.String()
		} else if c, ok := g.clusters[id.TrustDomain()]; ok {
			cluster = c.String()
		}
	}
	workload = id.Path()
	if namespace, account, ok := trust.ParseWorkload(id); ok {
		workload = namespace + "/" + account
	}
	return cluster, in.metrics.caller(workload)
}
