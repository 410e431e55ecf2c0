package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/isthmus-mesh/isthmus/internal/drain"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/internal/preamble"
	"github.com/isthmus-mesh/isthmus/sidecar/conn"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

const (
	handshakeTimeout = 5 * time.Second
	// maxHandshakes bounds those under way: past it, connections wait in the kernel.
	maxHandshakes = 256
	// inboundIdle ends an inner session that carries nothing; the caller's side gives up long before.
	inboundIdle = 10 * time.Minute
)

// Inbound takes calls from other workloads and hands them to the application.
type Inbound struct {
	identity     *trust.Identity
	bundles      *trust.Bundles
	guard        *trust.Guard
	snapshots    *live.Value[*topology.Snapshot]
	apps         *apps
	metrics      *metrics
	tracer       trace.Tracer
	propagator   propagation.TextMapPropagator
	log          *slog.Logger
	requestLevel slog.Level
	now          func() time.Time

	config *tls.Config
	policy trust.Policy
	server *http.Server
	proxy  *httputil.ReverseProxy
	work   drain.Drain // requests and opaque connections
}

// init makes what is made of the other fields.
func (in *Inbound) init() {
	// Who may open a session at all. What it may call is asked of authorize, for each request.
	in.policy = trust.AllowAny()
	in.config = trust.ServerConfig(trust.TLS{
		Identity:  in.identity,
		Bundles:   in.bundles,
		Policy:    in.policy,
		Protocols: []string{session.HTTP2, session.HTTP1, session.TCP},
		Now:       in.now,
	})
	// A service that isn't served here is refused in the handshake, where the caller knows that nothing was sent yet.
	in.config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		_, err := in.route(hello.ServerName)
		return nil, err
	}
	in.proxy = &httputil.ReverseProxy{
		Rewrite:        in.rewrite,
		Transport:      in.apps,
		BufferPool:     newBuffers(),
		ModifyResponse: in.modifyResponse,
		ErrorHandler:   in.answerError,
		ErrorLog:       slog.NewLogLogger(in.log.Handler(), slog.LevelDebug),
	}
	in.server = newServer(http.HandlerFunc(in.serve), in.log)
	in.server.IdleTimeout = inboundIdle
	in.server.Protocols.SetHTTP2(true)
	in.server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		a, err := in.arrivalOf(c.(*tls.Conn)) // run gives it nothing else
		if err != nil {
			_ = c.Close() // what passed the handshake fails here only when the snapshot changed in between
		}
		return context.WithValue(ctx, arrivalKey{}, a)
	}
}

// authorize says whether a caller may do what it asks for; an error refuses it. Today every workload of every trust domain that
// this one knows may, once its own gateway let it through: this is the place of AccessPolicy.
func (in *Inbound) authorize(spiffeid.ID, topology.ServiceName, uint16) error { return nil }

// arrival is what the handshake of an inner session settled.
type arrival struct {
	peer    trust.Peer
	service topology.ServiceName
	port    uint16
}

type arrivalKey struct{}

func (in *Inbound) arrivalOf(c *tls.Conn) (*arrival, error) {
	state := c.ConnectionState()
	peer, err := trust.PeerOf(state)
	if err != nil {
		return nil, err
	}
	service, port, err := preamble.ParseServerName(state.ServerName)
	if err != nil {
		return nil, err
	}
	return &arrival{peer: peer, service: service, port: port}, nil
}

var errNotServed = errors.New("not served here")

// route finds the port that a session asks for, by the name it gave in its handshake.
func (in *Inbound) route(serverName string) (*topology.InboundPort, error) {
	service, port, err := preamble.ParseServerName(serverName)
	if err != nil {
		return nil, err
	}
	if p := in.port(service, port); p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("%s port %d: %w", service, port, errNotServed)
}

func (in *Inbound) port(service topology.ServiceName, number uint16) *topology.InboundPort {
	snapshot := in.snapshots.Load()
	if snapshot == nil {
		return nil
	}
	served := snapshot.Inbound(service)
	if served == nil {
		return nil
	}
	for i := range served.Ports {
		if served.Ports[i].Number == number {
			return &served.Ports[i]
		}
	}
	return nil
}

// run takes connections until ctx ends; work is what they run in.
func (in *Inbound) run(ctx, work context.Context, ln net.Listener) error {
	requests := conn.NewHandoff(ln.Addr())
	in.server.BaseContext = func(net.Listener) context.Context { return work }
	defer context.AfterFunc(ctx, func() { _ = ln.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _ = serve(ctx, in.server, requests) }) // it ends with requests
	defer func() { _ = requests.Close() }()
	slots := make(chan struct{}, maxHandshakes)
	for {
		raw, err := acceptFrom(ctx, ln)
		if raw == nil {
			return err
		}
		slots <- struct{}{} // handshakes end by themselves
		wg.Go(func() {
			c, err := in.handshake(work, raw)
			<-slots
			switch {
			case err != nil:
				in.log.DebugContext(work, "session refused", slog.String("from", raw.RemoteAddr().String()), slog.Any("error", err))
			case c.ConnectionState().NegotiatedProtocol == session.TCP:
				in.tunnel(work, c, raw)
			default:
				requests.Give(c)
			}
		})
	}
}

// handshake makes c of raw, which it closes on failure.
func (in *Inbound) handshake(ctx context.Context, raw net.Conn) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	open := in.metrics.connections.WithLabelValues(inbound)
	open.Inc()
	told := conn.Carry(raw, open.Dec)
	c := tls.Server(told, in.config)
	if err := c.HandshakeContext(ctx); err != nil {
		_ = told.Close()
		return nil, err
	}
	told.OnClose(in.guard.Watch(c.ConnectionState(), in.policy, func(error) { _ = told.Close() }))
	return c, nil
}

// acceptFrom returns the next connection; nil when ctx has ended. What passes by itself (no file descriptors) is waited out.
func acceptFrom(ctx context.Context, ln net.Listener) (net.Conn, error) {
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		c, err := ln.Accept()
		switch {
		case err == nil:
			return c, nil
		case ctx.Err() != nil:
			return nil, nil //nolint:nilnil // said above
		}
		if passing, ok := errors.AsType[interface {
			error
			Temporary() bool
		}](err); !ok || !passing.Temporary() {
			return nil, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, nil //nolint:nilnil // said above
		}
	}
}
