// Package control is the control plane of one cluster: what its Registry declares and what its peers say goes in; what the
// cluster says to its peers, and what its gateways and sidecars need to know, goes out.
//
// It has one owner loop (Control.Run). Events only wake it; it then takes the present state of everything (the registry's
// snapshot, the peers' views, who has joined, what gateways reported) and computes all that follows from it anew, in
// build, a pure function over values. What comes out is handed on as immutable values: to federation.Member, to the config
// stream, to the registry's status.
//
// It also is who its programs ask for their identity (api/identity/v1), and it answers the CLI (api/admin).
//
// What holds whatever happens: nothing is deleted before every source has been read once; a control plane that starts again with the
// same state folder gives every service the same address; a peer that falls silent keeps its place until its word has ended, and a peer
// whose ClusterPeer is removed loses it at once.
//
// The multi-cluster rules are KEP-1645's, in federation.Merge; the conditions are worded as sigs.k8s.io/mcs-api v1beta1 has them.
package control

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/internal/ready"
	"github.com/isthmus-mesh/isthmus/topology"
)

// Config is what a Control is made from.
type Config struct {
	Cluster topology.ClusterName // required
	Domain  spiffeid.TrustDomain // required
	Region  string
	Zone    string // of what names none

	// StateDir holds keys, what peers said last, who has joined, and the addresses of imports. Required; made 0700.
	StateDir string
	Registry Registry // required
	Courier  Courier  // required
	Attestor Attestor // default: none, only join tokens let programs join
	// Upstream is somebody else's CA that issues for this trust domain; nil: one of control's own.
	Upstream *UpstreamFiles
	// UpstreamAPI is the address of a SPIFFE Workload API (unix:///…) that gives control and its programs their identities: then control issues
	// none. Not with Upstream.
	UpstreamAPI string
	// BusURLs is what peers are told of the own bus, e.g. "tls://203.0.113.7:4222".
	BusURLs []string
	// ClusterSetCIDR is where the addresses of imports come from. Default 241.0.0.0/8.
	ClusterSetCIDR netip.Prefix
	// PodCIDRs hold the addresses of the cluster's pods, beside those that the registry knows of. Peers are told.
	PodCIDRs []netip.Prefix
	// PeerPodCIDRs are the addresses that peers may say their pods have: within them, the headless copies of a peer are called by their own
	// addresses where no other cluster has the same. nil: DefaultPeerPodCIDRs; empty: none.
	PeerPodCIDRs []netip.Prefix
	// NodeProxies are the names of the node proxies that may join and stand in for copies without a sidecar; with an Attestor, so
	// may those that it says are some.
	NodeProxies []string

	GRPC   net.Listener // required: config stream and identities, for the own cluster's programs
	Socket net.Listener // the admin API, for who may open it; nil: not served
	Admin  net.Listener // metrics and probes; nil: not served
	// WorkloadAPI is a Unix socket for the processes of this machine: who runs as the user that a Workload names gets its identity there (SPIFFE
	// Workload API). nil: not served.
	WorkloadAPI net.Listener
	// Webhook is what the platform calls; default: none.
	Webhook *Webhook
	// FederationEndpoint serves the own trust bundle to everybody; default: none.
	FederationEndpoint *FederationEndpoint

	Checks  *ready.Checks        // default: none
	Metrics *prometheus.Registry // default: none
	Log     *slog.Logger         // default: none
	Now     func() time.Time     // default time.Now
	Version string               // shown in status
}

// UpstreamFiles are the files of an intermediate CA (trust.FileConfig).
type UpstreamFiles struct{ Certificate, Key, Bundle string }

// DefaultClusterSetCIDR is a part of 240.0.0.0/4 that nobody routes (RFC 1112 section 4 reserves it).
var DefaultClusterSetCIDR = netip.MustParsePrefix("241.0.0.0/8")

// DefaultPeerPodCIDRs are the ranges for private use (RFC 1918, 6598, 4193): a peer can't speak for an address of the Internet.
var DefaultPeerPodCIDRs = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fc00::/7"),
}

// nameSegment is what the name of a gateway or node proxy is made of: one segment of a SPIFFE ID's path (SPIFFE-ID section 2.2), and
// a DNS label, so that it reads the same everywhere.
var nameSegment = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Cluster.IsZero():
		return c, fmt.Errorf("control: no cluster name")
	case c.Domain.IsZero():
		return c, fmt.Errorf("control: no trust domain")
	case c.StateDir == "":
		return c, fmt.Errorf("control: no state folder")
	case c.Registry == nil || c.Courier == nil || c.GRPC == nil:
		return c, fmt.Errorf("control: registry, courier and gRPC listener are required")
	}
	if c.Upstream != nil && c.UpstreamAPI != "" {
		return c, fmt.Errorf("control: two authorities: want files or a Workload API")
	}
	if w := c.Webhook; w != nil && (w.Listener == nil || w.Handler == nil || len(w.Names) == 0) {
		return c, fmt.Errorf("control: a webhook without listener, handler or name")
	}
	if e := c.FederationEndpoint; e != nil && e.Listener == nil {
		return c, fmt.Errorf("control: a federation endpoint without listener")
	}
	if c.PeerPodCIDRs == nil {
		c.PeerPodCIDRs = DefaultPeerPodCIDRs
	}
	if !c.ClusterSetCIDR.IsValid() {
		c.ClusterSetCIDR = DefaultClusterSetCIDR
	}
	c.ClusterSetCIDR = c.ClusterSetCIDR.Masked()
	if hostBits(c.ClusterSetCIDR) < minHostBits {
		return c, fmt.Errorf("control: clusterset CIDR %s: too small, want at most /%d", c.ClusterSetCIDR, c.ClusterSetCIDR.Addr().BitLen()-minHostBits)
	}
	for _, n := range c.NodeProxies {
		if !nameSegment.MatchString(n) {
			return c, fmt.Errorf("control: node proxy %q: want lower-case letters, digits and inner hyphens, at most 63", n)
		}
	}
	if c.Checks == nil {
		c.Checks = ready.New()
	}
	if c.Metrics == nil {
		c.Metrics = prometheus.NewRegistry()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return c, nil
}
