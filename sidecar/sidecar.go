// Package sidecar carries a workload's calls, in and out: it speaks plain HTTP and TCP with the application beside it, and
// TLS 1.3 from workload to workload with everybody else, straight within the cluster and through gateways to others.
//
// Outbound takes what the application calls (an HTTP proxy, listeners for single services, DNS), asks topology.Choose for the
// copies, and spreads requests over inner sessions to them; what fails before it did anything is tried elsewhere. Inbound takes
// inner sessions from other workloads and hands their requests to the application, saying who calls. The same program stands in
// for workloads without a sidecar (a node proxy): then it serves several services. cmd/isthmus-sidecar is the one user.
//
// Concurrency: New, then Checks, Handler and Explain at any time; Run once. Run is the parent of every goroutine and returns when
// all have ended. State that changes is one immutable topology.Snapshot at a time; a request takes it once.
//
// Standards: RFC 9110, 9112 and 9113 (HTTP), RFC 6455 (WebSocket), W3C Trace Context, KEP-1645 (names), RFC 1035 (DNS).
package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/isthmus-mesh/isthmus/internal/configstream"
	records "github.com/isthmus-mesh/isthmus/internal/datagram"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/sidecar/balance"
	"github.com/isthmus-mesh/isthmus/sidecar/conn"
	"github.com/isthmus-mesh/isthmus/sidecar/dns"
	"github.com/isthmus-mesh/isthmus/sidecar/host"
	"github.com/isthmus-mesh/isthmus/sidecar/session"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/enduser"
)

// defaultGrace is what requests in flight get to end when the sidecar does.
const defaultGrace = 10 * time.Second

// Config is what a Sidecar is made from. Identity, Bundles, Guard, Snapshots and Subscribe are needed; Guard.Run is run by
// whoever made it. The Sidecar closes the listeners.
type Config struct {
	Identity  *trust.Identity
	Bundles   *trust.Bundles
	Guard     *trust.Guard
	Snapshots *live.Value[*topology.Snapshot] // nil until the first configuration
	// Subscribe asks control for a service, and returns when the snapshots speak of it, or when it is known not to exist.
	Subscribe func(context.Context, topology.ServiceName) error

	Inbound   net.Listener    // inner sessions from others; nil: none
	Proxy     net.Listener    // the explicit HTTP proxy; nil: none
	Listeners []LocalListener // for single services
	UDP       []UDPListener   // for single services' datagrams
	DNS       net.PacketConn  // nil: no DNS over UDP
	DNSStream net.Listener    // nil: no DNS over TCP

	// Captured takes connections that were opened to other addresses, and that the kernel brought here (package capture); nil: none.
	Captured net.Listener
	// Original returns where a captured connection was opened to. Default: what the kernel says.
	Original func(net.Conn) (netip.AddrPort, error)
	// Resolve asks control which service has an address; nil: only what the snapshot holds is known.
	Resolve func(context.Context, netip.Addr) (service topology.ServiceName, ok bool, err error)
	// PassThrough passes captured connections on as they are where no service of the mesh has the address; else they are reset.
	PassThrough bool

	// CaptureFile is where to say which addresses beside those of services are to be captured: the pods of other clusters whose headless copies are
	// called by their own addresses. One prefix a line; isthmus-capture --to-file follows it. Empty: it isn't said.
	CaptureFile string

	// Lease asks control for this copy's part of quotas that copies share; nil: each copy has an even share.
	Lease func(context.Context, configstream.Demands) (configstream.Shares, time.Duration, error)
	// KeysDir is the folder with the files of keys by which tokens of end users are verified, where policies name files; empty: there are none.
	KeysDir string
	// KeysTransport fetches such keys, where policies name URLs. Default: what net/http has.
	KeysTransport http.RoundTripper

	// Connect opens TCP connections: to copies, to gateways, to the application. Default: net.Dialer.
	Connect func(ctx context.Context, address string) (net.Conn, error)

	Log *slog.Logger // default: none
	// RequestLevel is the level at which each request and connection is logged. Default: debug.
	RequestLevel slog.Leveler
	Metrics      prometheus.Registerer // default: one that nobody reads
	Tracer       trace.TracerProvider  // default: none
	Propagator   propagation.TextMapPropagator
	// DrainGrace is what requests in flight get to end when Run's context does. Default 10 s.
	DrainGrace time.Duration
	Now        func() time.Time // default time.Now
}

// LocalListener is a listener whose connections go to one port of one service.
type LocalListener struct {
	Service  topology.ServiceName
	Port     uint16
	Scope    topology.Scope
	Listener net.Listener
}

func (c Config) withDefaults() (Config, error) {
	if c.Identity == nil || c.Bundles == nil || c.Guard == nil || c.Snapshots == nil || c.Subscribe == nil {
		return c, errors.New("sidecar: Identity, Bundles, Guard, Snapshots and Subscribe are needed")
	}
	if c.Connect == nil {
		c.Connect = func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}
	}
	if c.Original == nil {
		c.Original = conn.Original
	}
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	if c.RequestLevel == nil {
		c.RequestLevel = slog.LevelDebug
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider()
	}
	if c.Propagator == nil {
		c.Propagator = propagation.TraceContext{}
	}
	c.DrainGrace = cmp.Or(c.DrainGrace, defaultGrace)
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, nil
}

// Sidecar is both sides of one workload's proxy.
type Sidecar struct {
	config   Config
	outbound *Outbound
	inbound  *Inbound
	sessions *session.Set
	dns      *dns.Server

	mu     sync.Mutex
	checks []*ready.Checks // guarded by mu
}

// New makes a Sidecar; Run starts it.
func New(config Config) (*Sidecar, error) {
	c, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	counts, err := newMetrics(c.Metrics)
	if err != nil {
		return nil, fmt.Errorf("sidecar: metrics: %w", err)
	}
	tracer := c.Tracer.Tracer("github.com/isthmus-mesh/isthmus/sidecar")
	s := &Sidecar{config: c}
	health, pace := new(balance.Health[topology.Target]), new(balance.Pace[topology.Target])
	o := &Outbound{
		health: health, pace: pace, metrics: counts, tracer: tracer, propagator: c.Propagator, log: c.Log,
		requestLevel: c.RequestLevel.Level(), now: c.Now, self: s.self,
		connectTo: c.Connect, original: c.Original, passThrough: c.PassThrough,
	}
	s.sessions = session.NewSet(session.Config{
		Dialer: &session.Dialer{
			Identity: c.Identity, Bundles: c.Bundles, Guard: c.Guard, Snapshots: c.Snapshots,
			Propagator: c.Propagator, Connect: c.Connect, Now: c.Now,
			Heard: func(t topology.Target) { pace.Alive(c.Now(), t) },
		},
		Tracer: tracer,
		Opened: o.opened,
		Count: func(to session.Destination, n int) {
			counts.sessions.WithLabelValues(to.Cluster.String(), to.Service.String()).Add(float64(n))
		},
	})
	o.sessions = s.sessions
	o.udp = &udpSessions{o: o, waiting: records.NewBudget(maxUDPWaitingAll), open: make(map[udpPlace][]*udpSession), dialing: make(map[udpPlace]chan struct{})}
	o.resolver = newResolver(c, health, pace, s.sessions, &o.tallies)
	o.init()
	s.outbound = o
	s.inbound = &Inbound{
		identity: c.Identity, bundles: c.Bundles, guard: c.Guard, snapshots: c.Snapshots, apps: newApps(c.Connect, c.Now),
		metrics: counts, tracer: tracer, propagator: c.Propagator, log: c.Log, requestLevel: c.RequestLevel.Level(), now: c.Now,
		users: enduser.New(enduser.Config{
			Folder: c.KeysDir, Transport: c.KeysTransport, Now: c.Now, Log: c.Log,
			Refused: func(issuer access.Issuer, err error) {
				reason := "error"
				if r, ok := errors.AsType[*enduser.Refusal](err); ok {
					reason = string(r.Reason)
				}
				counts.tokenRefused(issuer.Issuer, reason)
				c.Log.Debug("token refused", "issuer", issuer.Issuer, "error", err)
			},
		}),
	}
	s.inbound.init()
	s.dns = &dns.Server{Lookup: o.resolver.lookup, Log: c.Log}
	return s, nil
}

func (s *Sidecar) self() topology.Self {
	if snapshot := s.config.Snapshots.Load(); snapshot != nil {
		return snapshot.Self()
	}
	return topology.Self{}
}

// Explain tells where requests of that query would go now, and why: by what control says, and by what this sidecar's own
// requests have shown.
func (s *Sidecar) Explain(ctx context.Context, q topology.Query) topology.Explanation {
	x, _ := s.ExplainAsIf(ctx, q, nil) // only places can be wrong
	return x
}

// ExplainAsIf is Explain, and tells where they would go if some places were down, as topology.ExplainAsIf takes them. The error names one that
// no copy is at.
func (s *Sidecar) ExplainAsIf(ctx context.Context, q topology.Query, down []string) (topology.Explanation, error) {
	snapshot, err := s.outbound.resolver.snapshot(ctx, q.Service)
	if err != nil {
		return topology.Explain(topology.Plan{Query: q}, err), nil
	}
	w := s.outbound.resolver.outlook(snapshot, q)
	x, err := topology.ExplainAsIf(w.snapshot, q, w.load, down)
	for i := range x.Rows {
		r := &x.Rows[i]
		r.NextTry = s.outbound.health.NextTry(q.Target(r.Cluster, r.Endpoint))
	}
	return x, err
}

// Checks makes c wait for what the sidecar needs before it can serve: a configuration, and its listeners.
func (s *Sidecar) Checks(c *ready.Checks) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.Waiting(checkServing, "not started yet")
	s.checks = append(s.checks, c)
}

const checkServing = "sidecar"

// ParseQuery reads what a person asks Explain for: a DNS name of a service, or name.namespace for a clusterset name; and a
// port, 80 when it is empty; "53/udp" is the one for datagrams.
func ParseQuery(name, port string) (topology.Query, error) {
	number := uint64(80)
	port, datagrams := strings.CutSuffix(port, "/udp")
	if port != "" {
		var err error
		if number, err = strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
			return topology.Query{}, fmt.Errorf("port %q: want 1 to 65535", port)
		}
	}
	if service, err := topology.ParseServiceName(name); err == nil {
		return topology.Query{Service: service, Port: uint16(number), Datagrams: datagrams}, nil
	}
	service, scope, err := host.Name(name)
	if err != nil {
		return topology.Query{}, err
	}
	return topology.Query{Service: service, Port: uint16(number), Scope: scope, Datagrams: datagrams}, nil
}
