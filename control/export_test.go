package control

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/api/admin"
	configv1 "github.com/isthmus-mesh/isthmus/api/config/v1"
	identityv1 "github.com/isthmus-mesh/isthmus/api/identity/v1"
	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/internal/configstream"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/isthmus-mesh/isthmus/trust/bundleendpoint"
)

// Scene is inputs of build, for tests outside the package.
type Scene struct {
	Self      Self
	CIDR      netip.Prefix
	Known     []string
	Objects   *Objects
	Views     []*federation.View
	Gateways  []topology.Gateway
	Nodes     map[string]netip.AddrPort
	Links     map[topology.ClusterName]Link
	Addresses map[topology.ServiceName]netip.Addr
	Complete  bool
	Pods      []netip.Prefix
	Trust     trust.Bundle
	Named     bool // a CA of the own SVIDs says whose it is
}

// Link is a linkWord.
type Link struct {
	State topology.LinkState
	RTT   string
}

// Built is a world, for tests outside the package.
type Built struct {
	Resources []*configv1.Resource
	Own       federation.Own
	Exports   []ExportStatus
	Imports   []ImportStatus
	Silent    []topology.ClusterName
	Policies  []PolicyStatus
	Failover  []FailoverStatus
	Problems  []Problem
	Addresses map[topology.ServiceName]netip.Addr
	Hosts     int // copies of headless services that something stands for
}

func (s Scene) inputs() (inputs, error) {
	in := inputs{
		self: s.Self, trust: s.Trust, named: s.Named, objects: s.Objects, views: s.Views, gateways: s.Gateways, known: s.Known,
		links: make(map[topology.ClusterName]linkWord), addresses: s.Addresses, cidr: s.CIDR, complete: s.Complete, pods: s.Pods, peerPods: DefaultPeerPodCIDRs,
	}
	for _, name := range sortedKeys(s.Nodes) {
		server, err := trust.NodeID(s.Self.Domain, name)
		if err != nil {
			return in, err
		}
		in.nodes = append(in.nodes, node{name: name, inbound: s.Nodes[name], server: server})
	}
	for c, l := range s.Links {
		rtt, err := parseDuration(l.RTT)
		if err != nil {
			return in, err
		}
		in.links[c] = linkWord{state: l.State, rtt: rtt}
	}
	domains, _ := acceptedDomains(s.Self, s.Objects.Peers, s.Objects.Domains)
	for _, d := range domains { // as if each endpoint had said what stands in the manifest
		b, _, err := trust.ParseBundle(d.Domain, d.Initial)
		if err != nil {
			continue
		}
		in.domains = append(in.domains, bundleendpoint.State{Domain: d.Domain, Bundle: b, Freshness: bundleendpoint.Fresh})
	}
	return in, nil
}

// Build builds a scene.
func Build(s Scene) (Built, error) {
	in, err := s.inputs()
	if err != nil {
		return Built{}, err
	}
	w := build(in)
	return Built{w.resources, w.own, w.exports, w.imports, w.silent, w.policyStatus, w.failover, w.problems, w.addresses, len(w.hosts)}, nil
}

func sortedKeys(m map[string]netip.AddrPort) []string { return slices.Sorted(maps.Keys(m)) }

func parseDuration(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	return time.ParseDuration(s)
}

// LimitsFor returns what a process that may open that many files lets in: those with an SVID, of one ID; strangers, of one address; guests,
// of one address.
func LimitsFor(files int) [6]int {
	l := limitsFor(files)
	return [6]int{l.known, l.knownOfID, l.strangers.total, l.strangers.ofAddress, l.guests.total, l.guests.ofAddress}
}

// IsHostPort reports whether a gateway may say that it is there.
func IsHostPort(s string) bool { return isHostPort(s) }

// NewGate returns a gate of which all bounds but these are as ever. total and ofAddress are for strangers, and again for guests.
func NewGate(l net.Listener, known, ofID, total, ofAddress int) net.Listener {
	limits := limitsFor(0)
	limits.known, limits.knownOfID = known, ofID
	limits.strangers.total, limits.strangers.ofAddress = total, ofAddress
	limits.guests.total, limits.guests.ofAddress = total, ofAddress
	return newGate(l, limits, prometheus.NewCounter(prometheus.CounterOpts{Name: "shed"}))
}

// Visitor is a connection of a gate.
type Visitor = visitor

// Guest makes a connection of a gate a guest's.
func Guest(v *Visitor) error { return v.guest() }

// Known makes a connection of a gate somebody's.
func Known(v *Visitor, id spiffeid.ID) error { return v.known(id) }

// The bounds of a guest and of a call.
const (
	GuestBytes  = guestBytes
	GuestLife   = guestLife
	CallTimeout = callTimeout
)

// NewDomainStore returns the store of control for federated trust domains.
func NewDomainStore(marks, documents string) bundleendpoint.Store {
	return &domainStore{marks, documents}
}

// Policies returns what the admin API tells of a scene's policies.
func Policies(s Scene) (admin.Policies, error) {
	in, err := s.inputs()
	if err != nil {
		return admin.Policies{}, err
	}
	return (&present{world: build(in)}).policies(), nil
}

// PeerOf is whom a call is taken to be of.
func (c *Control) PeerOf(ctx context.Context) (trust.Peer, error) { return c.peerOf(ctx) }

// RevokeUntold revokes, before anybody is told, control's own connections among them.
func (c *Control) RevokeUntold(subject string) error {
	_, err := c.revoked.add(admin.Revocation{Subject: subject}, false)
	return err
}

// Identity is the identity service, for callers as peer knows them.
func (c *Control) Identity(peer func(context.Context) (trust.Peer, error)) identityv1.IdentityServer {
	return &identityServer{directory: c.directory, tokens: c.tokens, issuer: c.issuer(), authority: c.authority, peer: peer, log: c.cfg.Log}
}

// MaxTellers bounds the programs of which a timeline knows what they told.
const MaxTellers = maxTellers

// Timeline is a timeline, for tests outside the package.
type Timeline struct{ *timeline }

// NewTimeline returns an empty one.
func NewTimeline(cluster string, now func() time.Time) Timeline {
	return Timeline{newTimeline(cluster, now)}
}

// Tell notes what control did.
func (t Timeline) Tell(kind, service, detail string) {
	name, _ := topology.ParseServiceName(service)
	t.tell(kind, name, detail)
}

// Capacity notes of a cluster that it has so many ready copies, and had so many.
func (t Timeline) Capacity(service, cluster string, was, is int) {
	name, _ := topology.ParseServiceName(service)
	t.capacity(name, cluster, was, is)
}

// Of returns what is kept of a service.
func (t Timeline) Of(service string) []admin.TimelineEvent { return t.of(service, time.Time{}) }

// Turn takes in what a program told.
func (t Timeline) Turn(by string, m *configv1.Turn) { t.turn(by, m.GetService(), m) }

// Held counts the events that are kept, those that others may join in, and the programs of which it is known what they have told.
func (t Timeline) Held() (kept, recent, tellers int) {
	for _, r := range t.recent {
		recent += len(r)
	}
	return len(t.all), recent, len(t.told)
}

// CallersKept is what is kept of who calls a service, when a program tells two things one after the other: open requests by cluster.
func CallersKept(first, second []*configv1.ServedCaller) map[string]int {
	var l load
	s := new(served)
	s.callersOf(&l, first, false)
	s.callersOf(&l, second, true)
	out := make(map[string]int)
	for c, v := range l.callers {
		out[c.String()] = v.active
	}
	return out
}

// Traffic is what programs told of their calls, for tests outside the package.
type Traffic struct {
	*traffic
	sessions map[string]*configstream.Session
}

// NewTraffic returns an empty one, to which every program may tell of every service.
func NewTraffic(now func() time.Time) Traffic {
	t := newTraffic(now, func(topology.ClusterName) bool { return true })
	t.holds = func(*configstream.Session, topology.ServiceName) bool { return true }
	return Traffic{t, make(map[string]*configstream.Session)}
}

// Report takes in what a program tells, on the one stream that it has.
func (t Traffic) Report(by string, told ...*configv1.Traffic) {
	if t.sessions[by] == nil {
		t.sessions[by] = &configstream.Session{Receiver: by}
	}
	t.report(t.sessions[by], &configv1.Report{Traffic: told})
}

// Minutes counts the minutes in which something is known of a service.
func (t Traffic) Minutes(service string) int {
	seen := make(map[int64]bool)
	for key, line := range t.series {
		for _, m := range line.minutes {
			if m != nil && key.service.String() == service {
				seen[m.number] = true
			}
		}
	}
	return len(seen)
}

// Held counts what is kept, and panics when it was not counted right.
func (t Traffic) Held() (series, minutes int) {
	told := make(map[string]telling)
	for _, line := range t.series {
		o := told[line.by]
		o.series++
		for _, m := range line.minutes {
			if m != nil {
				o.minutes++
				minutes++
			}
		}
		told[line.by] = o
	}
	for by, has := range t.tellers {
		if told[by] != *has {
			panic("what " + by + " has was not counted right")
		}
	}
	if len(told) != len(t.tellers) || minutes != t.minutes {
		panic("not counted right")
	}
	return len(t.series), minutes
}

// JoinPorts returns the ports that a service has, by its own and what is imported: those that are carried, and the others.
func JoinPorts(own []topology.Port, imported []federation.ImportPort) ([]topology.Port, []topology.OtherPort) {
	return joinPorts(own, imported)
}
