package topology

import (
	"net/netip"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/quota"
)

// Locality is where something runs. An empty field is unknown, and not the same as anything.
type Locality struct {
	Region string `json:"region,omitempty"`
	Zone   string `json:"zone,omitempty"`
}

// Protocol is what a port speaks.
type Protocol string

// The protocols. TCP is opaque bytes; HTTP is HTTP/1.1 (with upgrades); HTTP2 is HTTP/2 with prior knowledge. UDP is datagrams: a port of
// that protocol is another one than one of the same number that is reached over TCP.
const (
	TCP   Protocol = "tcp"
	HTTP  Protocol = "http"
	HTTP2 Protocol = "http2"
	GRPC  Protocol = "grpc"
	UDP   Protocol = "udp"
)

// IsHTTP reports whether requests can be told apart, balanced and retried one by one.
func (p Protocol) IsHTTP() bool { return p == HTTP || p == HTTP2 || p == GRPC }

// Port is a port of a service.
type Port struct {
	Name     string   `json:"name,omitempty"`
	Number   uint16   `json:"port"`
	Protocol Protocol `json:"protocol"`
}

// OtherPort is a port of a service that is neither TCP's nor UDP's: it has a name in DNS, and the mesh carries nothing on it.
type OtherPort struct {
	Name     string `json:"name,omitempty"`
	Number   uint16 `json:"port"`
	Protocol string `json:"protocol"` // "sctp"
}

// Endpoint is one copy of a service in the own cluster, reached at its sidecar, or at the node proxy that stands in.
type Endpoint struct {
	ID       string         // unique within the service, e.g. the workload's name
	Address  netip.AddrPort // inbound mTLS listener
	Server   spiffeid.ID    // who must answer there
	Locality Locality
	Labels   map[string]string
	Ports    []uint16 // service ports that it serves
	UDPPorts []uint16 // and those for datagrams
	Ready    bool
	Capacity int  // ready copies behind the address; 1 but for a node proxy
	Total    int  // copies behind the address, ready or not; 0: as many as Capacity
	StandIn  bool // a node proxy answers for a workload without a sidecar
}

// Remote is all that another cluster says of a service that it exports.
type Remote struct {
	Cluster  ClusterName
	Servers  []spiffeid.ID // who may answer
	Ports    []uint16
	UDPPorts []uint16 // and those for datagrams
	Ready    int      // ready copies, by the cluster's last word
	Total    int      // its copies, ready or not; 0: not known
	Labels   map[string]string
	Stale    bool   // that word is old; still in use
	Drain    *Drain // nil: not drained
}

// Service is a service as a caller in this cluster sees it.
type Service struct {
	Name          ServiceName
	Ports         []Port
	OtherPorts    []OtherPort
	ClusterIPs    []netip.Addr // of the Service in the own cluster
	ClusterSetIPs []netip.Addr // of the ServiceImport
	Imported      bool         // a ServiceImport exists: <name>.<ns>.svc.clusterset.local resolves
	Exported      bool         // the own cluster exports it: its endpoints count for the clusterset name
	Headless      bool
	Endpoints     []Endpoint
	Remotes       []Remote
	Hosts         []HostGroup // of a headless import, the own cluster's too; ordered by cluster
	Policy        *Policy     // nil: the default order
	Drain         *Drain      // of the own cluster's copies; nil: not drained
}

// Port returns the port of that number that is reached over TCP.
func (s *Service) Port(number uint16) (Port, bool) { return s.port(number, false) }

// port returns the port of that number, for datagrams or else over TCP.
func (s *Service) port(number uint16, datagrams bool) (Port, bool) {
	i := slices.IndexFunc(s.Ports, func(p Port) bool { return p.Number == number && (p.Protocol == UDP) == datagrams })
	if i < 0 {
		return Port{}, false
	}
	return s.Ports[i], true
}

// HostGroup is the ready copies of a headless service in one cluster, each of which may be called by name.
type HostGroup struct {
	Cluster ClusterName
	Ports   []HostPort
	Hosts   []Host // ordered by Address
}

// HostPort is a port of a HostGroup.
type HostPort struct {
	Name     string `json:"name,omitempty"`
	Number   uint16 `json:"port"`     // the service's
	Target   uint16 `json:"target"`   // where the copies listen, and callers connect to
	Protocol string `json:"protocol"` // "tcp", "udp" or "sctp"
}

// Host is one copy, known by name.
type Host struct {
	Name    string       // one DNS label: its host name, or else its address with dashes; several may share one
	Address netip.Addr   // in its own cluster, where it tells it from the others
	IPs     []netip.Addr // by which callers of this cluster reach it: its own, or others that stand for it here
}

// HostRef names one copy of a headless service. The zero HostRef names none.
type HostRef struct {
	Cluster ClusterName
	Address netip.Addr // in that cluster
}

// IsZero reports whether it names none.
func (h HostRef) IsZero() bool { return h == HostRef{} }

// LinkState is what the gateways say of the links to a cluster.
type LinkState string

// The link states.
const (
	LinkUnknown LinkState = ""
	LinkUp      LinkState = "up"
	LinkDown    LinkState = "down"
	// LinkSuspect: what should have been heard is overdue. No reason to leave yet, but one to try another way beside.
	LinkSuspect LinkState = "suspect"
)

// Cluster is a peer cluster.
type Cluster struct {
	Name   ClusterName
	Domain spiffeid.TrustDomain
	Region string
	Link   LinkState
	RTT    time.Duration // between gateways, rounded by who measured; 0 = unknown
	// Pods hold addresses that are nobody's but its pods': those of its headless copies among them are called as they are.
	Pods     []netip.Prefix
	Gateways []Gateway // all, in a gateway's snapshot; elsewhere only those that drain, without their addresses
}

// Gateway is an east-west gateway.
type Gateway struct {
	ID       string
	Address  string // host:port for TLS over TCP, from sidecars of the own cluster
	QUIC     string // host:port for QUIC, from gateways of other clusters
	TCP      string // host:port for TLS over TCP, from gateways of other clusters; empty: none
	Identity spiffeid.ID
	Zone     string
	Draining bool
}

// Export is a row of a gateway's export table: what other clusters may reach through it.
type Export struct {
	Name      ServiceName
	Ports     []uint16
	UDPPorts  []uint16      // those for datagrams
	Audience  []ClusterName // who may; empty = every peer
	Endpoints []Endpoint
	Hosts     []netip.Addr // of a headless service: the copies that may be called by name
	Drill     *Drill       // nil: none
}

// Inbound is a service that a sidecar (or a node proxy) serves: where each port's traffic goes.
type Inbound struct {
	Name     ServiceName
	Ports    []InboundPort
	Exported bool          // workloads of other clusters may call it
	Audience []ClusterName // of which clusters; empty = of every peer
	// Access says which of the callers that may reach it may ask for what: each set must let a request through; none: all may.
	Access [][]access.Policy
	Quotas []Quota // each of which must have room for a request that it is for
	Drill  *Drill  // nil: none
}

// Quota bounds requests to a service.
type Quota struct {
	Name    string // namespace/name of the object, "/" and that of the limit: the same wherever it counts
	Per     QuotaPer
	Limit   quota.Limit
	Audit   bool // what it would refuse is told, and let through
	From    []access.Source
	To      []access.Operation
	Issuers []access.Issuer // whose end users are told apart
}

// QuotaPer says whose requests are counted together.
type QuotaPer string

// Whose requests are counted together: those of one SPIFFE ID, of one end user, or all.
const (
	PerCaller  QuotaPer = "caller"
	PerEndUser QuotaPer = "end-user"
	PerService QuotaPer = "service"
)

// InboundPort says where one service port's traffic goes: to the application, in plain.
type InboundPort struct {
	Number   uint16
	Protocol Protocol
	Targets  []netip.AddrPort // one; several behind a node proxy
}

// Self is who holds a snapshot.
type Self struct {
	Cluster   ClusterName
	Domain    spiffeid.TrustDomain
	Locality  Locality
	Namespace string
	Workload  string
}

// Snapshot is one consistent, immutable view of what its holder uses. Take it once per request.
type Snapshot struct {
	self     Self
	services map[ServiceName]*Service
	clusters map[ClusterName]*Cluster
	exports  map[ServiceName]*Export
	inbounds map[ServiceName]*Inbound
	gateways []Gateway
	at       map[netip.Addr]Place
}

// Place is what an address stands for.
type Place struct {
	Service *Service
	Scope   Scope      // whether it speaks of the copies in the own cluster (a cluster IP), or of those in the clusterset
	Group   *HostGroup // with Host: one copy of a headless service in another cluster; else nil
	Host    *Host
}

// Query returns what a connection to the place, on that port, asks for. Copies that are called one by one are called where they listen, as
// in their own cluster; where none listens on it, the port may be the service's.
func (p Place) Query(port uint16) Query {
	q := Query{Service: p.Service.Name, Port: port, Scope: p.Scope}
	if p.Host == nil {
		return q
	}
	q.Host = HostRef{p.Group.Cluster, p.Host.Address}
	for _, hp := range p.Group.Ports {
		if hp.Target == port && hp.Protocol == hostPortTCP {
			q.Port = hp.Number
			break
		}
	}
	return q
}

// hostPortTCP is the HostPort.Protocol of what is carried.
const hostPortTCP = "tcp"

// SnapshotSpec is what a Snapshot is made from. NewSnapshot keeps the slices and what they point to: they must not change after.
type SnapshotSpec struct {
	Self     Self
	Services []*Service
	Clusters []*Cluster
	Gateways []Gateway  // of the own cluster
	Exports  []*Export  // for a gateway
	Inbounds []*Inbound // for a sidecar
}

// NewSnapshot freezes spec.
func NewSnapshot(spec SnapshotSpec) *Snapshot {
	s := &Snapshot{
		self:     spec.Self,
		services: make(map[ServiceName]*Service, len(spec.Services)),
		clusters: make(map[ClusterName]*Cluster, len(spec.Clusters)),
		exports:  make(map[ServiceName]*Export, len(spec.Exports)),
		inbounds: make(map[ServiceName]*Inbound, len(spec.Inbounds)),
		gateways: spec.Gateways,
		at:       make(map[netip.Addr]Place, len(spec.Services)),
	}
	for _, v := range spec.Services {
		s.services[v.Name] = v
		for _, a := range v.ClusterIPs {
			s.at[a] = Place{Service: v, Scope: ClusterLocal}
		}
		for _, a := range v.ClusterSetIPs {
			s.at[a] = Place{Service: v, Scope: ClusterSet}
		}
	}
	for _, v := range spec.Services {
		for i := range v.Hosts {
			s.placeHosts(v, &v.Hosts[i])
		}
	}
	for _, c := range spec.Clusters {
		s.clusters[c.Name] = c
	}
	for _, e := range spec.Exports {
		s.exports[e.Name] = e
	}
	for _, i := range spec.Inbounds {
		s.inbounds[i.Name] = i
	}
	return s
}

// Self returns who holds the snapshot.
func (s *Snapshot) Self() Self { return s.self }

// Host returns the copy that ref names, or nil.
func (s *Service) Host(ref HostRef) *Host {
	for i := range s.Hosts {
		if s.Hosts[i].Cluster != ref.Cluster {
			continue
		}
		for j := range s.Hosts[i].Hosts {
			if h := &s.Hosts[i].Hosts[j]; h.Address == ref.Address {
				return h
			}
		}
	}
	return nil
}

// Service returns the named service, or nil.
func (s *Snapshot) Service(n ServiceName) *Service { return s.services[n] }

// At returns what an address stands for; ok is false when none of the services that the snapshot holds has it.
func (s *Snapshot) At(a netip.Addr) (Place, bool) {
	p, ok := s.at[a.Unmap()]
	return p, ok
}

// placeHosts notes the addresses of copies in another cluster. Those of the own one are pods like any other.
func (s *Snapshot) placeHosts(v *Service, g *HostGroup) {
	if g.Cluster == s.self.Cluster {
		return
	}
	for i := range g.Hosts {
		for _, a := range g.Hosts[i].IPs {
			if _, taken := s.at[a]; !taken { // an address of the own cluster, or of an import, is never a copy's
				s.at[a] = Place{Service: v, Scope: ClusterSet, Group: g, Host: &g.Hosts[i]}
			}
		}
	}
}

// Cluster returns the named peer cluster, or nil.
func (s *Snapshot) Cluster(n ClusterName) *Cluster { return s.clusters[n] }

// Export returns the export table's row of that name, or nil.
func (s *Snapshot) Export(n ServiceName) *Export { return s.exports[n] }

// Exports returns the export table, ordered by name.
func (s *Snapshot) Exports() []*Export {
	return sorted(s.exports, func(a, b *Export) int { return a.Name.Compare(b.Name) })
}

// Inbound returns what is served under that name, or nil.
func (s *Snapshot) Inbound(n ServiceName) *Inbound { return s.inbounds[n] }

// Inbounds returns all that is served, ordered by name.
func (s *Snapshot) Inbounds() []*Inbound {
	return sorted(s.inbounds, func(a, b *Inbound) int { return a.Name.Compare(b.Name) })
}

// Gateways returns the gateways of the own cluster. Not to be changed.
func (s *Snapshot) Gateways() []Gateway { return s.gateways }

// Services returns all services, ordered by name.
func (s *Snapshot) Services() []*Service {
	return sorted(s.services, func(a, b *Service) int { return a.Name.Compare(b.Name) })
}

// Clusters returns all peer clusters, ordered by name.
func (s *Snapshot) Clusters() []*Cluster {
	return sorted(s.clusters, func(a, b *Cluster) int { return a.Name.Compare(b.Name) })
}

func sorted[K comparable, V any](m map[K]V, compare func(a, b V) int) []V {
	out := make([]V, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	slices.SortFunc(out, compare)
	return out
}
