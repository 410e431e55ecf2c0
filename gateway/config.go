package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	"github.com/isthmus-mesh/isthmus/internal/live"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// Config says what a Gateway works with. The fields of the first group must be set; of the others, zero means the default.
type Config struct {
	ID        string // unique in the cluster: "gateway-0"
	Identity  *trust.Identity
	Bundles   *trust.Bundles
	Guard     *trust.Guard // run by somebody else
	Snapshots *live.Value[*topology.Snapshot]
	Streams   net.Listener   // TCP, for sidecars; owned by the gateway from New on
	Link      net.PacketConn // UDP, for gateways of other clusters; owned likewise
	// DialPacket opens the socket of one outgoing connection; the gateway closes it.
	DialPacket func() (net.PacketConn, error)

	// LinkTCP takes the links of gateways of other clusters that come over TCP; owned by the gateway from New on. Default: none do.
	LinkTCP net.Listener
	// LinkOnStreams: they come to Streams too, and are told apart from sidecars by what they say they speak (ALPN).
	LinkOnStreams bool
	// DialTCP connects to a peer gateway's host:port. Default: the system's TCP.
	DialTCP func(ctx context.Context, hostPort string) (net.Conn, error)

	// DialEndpoint connects to a copy of an exported service. Default: TCP.
	DialEndpoint func(context.Context, netip.AddrPort) (net.Conn, error)
	// Resolve turns a peer gateway's host:port into a UDP address. Default: as it is, or through the system's resolver.
	Resolve func(ctx context.Context, hostPort string) (net.Addr, error)
	// Report is told the state of all links, when it changes and every ReportInterval. Must not block. Default: nobody is told.
	Report func(*configv1.Report)

	Log     *slog.Logger
	Metrics prometheus.Registerer
	Tracer  trace.TracerProvider

	ConnectionsPerPeer int           // QUIC connections to a peer cluster; at least one to each of its gateways. Default 4
	MaxStreams         int           // carried at a time, both ways together; more are refused. Default 16384
	ProbeInterval      time.Duration // between two probes of a connection, up to MaxProbeInterval. Default 100 ms
	// DeadAfter is how long nothing is heard before a connection is given up, at least; more where the round trip is long (three of them and
	// two probes) or silences were long before, and while this process itself was held up. Default 400 ms
	DeadAfter      time.Duration
	DrainGrace     time.Duration // for streams to end when Run's context has ended. Default 10 s
	OpenTimeout    time.Duration // from a stream's preamble to its answer. Default 10 s
	ReportInterval time.Duration // Default 5 s
}

// Defaults, and bounds that are nobody's to configure.
const (
	defaultConnections    = 4
	defaultMaxStreams     = 16384
	defaultProbeInterval  = 100 * time.Millisecond
	defaultDeadAfter      = 400 * time.Millisecond
	defaultDrainGrace     = 10 * time.Second
	defaultOpenTimeout    = 10 * time.Second
	defaultReportInterval = 5 * time.Second

	handshakeTimeout = 5 * time.Second // a sidecar's TLS handshake
	preambleTimeout  = 5 * time.Second // from the handshake, or a QUIC stream's first byte, to the whole preamble
	lingerTimeout    = time.Second     // for a refused caller to read why
	endpointTimeout  = time.Second     // one TCP connect within the cluster
	endpointAttempts = 3               // copies tried for one stream

	maxPeerGateways    = 16 // of one peer cluster; more are left out
	maxPeerConnections = 64 // that the gateways of one peer cluster may hold to this one
)

func (c Config) withDefaults() (Config, error) {
	missing := func(name string) (Config, error) { return Config{}, fmt.Errorf("gateway: config without %s", name) }
	switch {
	case c.ID == "":
		return missing("ID")
	case c.Identity == nil:
		return missing("Identity")
	case c.Bundles == nil:
		return missing("Bundles")
	case c.Guard == nil:
		return missing("Guard")
	case c.Snapshots == nil:
		return missing("Snapshots")
	case c.Streams == nil:
		return missing("Streams")
	case c.Link == nil:
		return missing("Link")
	case c.DialPacket == nil:
		return missing("DialPacket")
	}
	if c.ConnectionsPerPeer < 0 || c.MaxStreams < 0 || c.ProbeInterval < 0 || c.DeadAfter < 0 || c.DrainGrace < 0 ||
		c.OpenTimeout < 0 || c.ReportInterval < 0 {
		return Config{}, errors.New("gateway: negative value in config")
	}
	if c.ProbeInterval > MaxProbeInterval {
		return Config{}, fmt.Errorf("gateway: probe interval of %s, want %s at most", c.ProbeInterval, MaxProbeInterval)
	}
	if c.DialEndpoint == nil {
		dialer := new(net.Dialer)
		c.DialEndpoint = func(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", a.String())
		}
	}
	if c.Resolve == nil {
		c.Resolve = resolve
	}
	if c.DialTCP == nil {
		dialer := new(net.Dialer)
		c.DialTCP = func(ctx context.Context, hostPort string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", hostPort)
		}
	}
	if c.Report == nil {
		c.Report = func(*configv1.Report) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider()
	}
	orDefault(&c.ConnectionsPerPeer, defaultConnections)
	orDefault(&c.MaxStreams, defaultMaxStreams)
	orDefault(&c.ProbeInterval, defaultProbeInterval)
	orDefault(&c.DeadAfter, defaultDeadAfter)
	orDefault(&c.DrainGrace, defaultDrainGrace)
	orDefault(&c.OpenTimeout, defaultOpenTimeout)
	orDefault(&c.ReportInterval, defaultReportInterval)
	return c, nil
}

func orDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// resolve is the default of Config.Resolve.
func resolve(ctx context.Context, hostPort string) (net.Addr, error) {
	if a, err := netip.ParseAddrPort(hostPort); err == nil {
		return net.UDPAddrFromAddrPort(a), nil
	}
	host, service, err := net.SplitHostPort(hostPort)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "udp", service)
	if err != nil {
		return nil, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s has no address", host)
	}
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(addrs[0].Unmap(), uint16(port))), nil //nolint:gosec // G115: LookupPort returns 0 to 65535
}
