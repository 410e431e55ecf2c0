package control

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/isthmus-mesh/isthmus/federation"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust/access"
	"github.com/isthmus-mesh/isthmus/trust/bundleendpoint"
)

// AudienceAnnotation on a ServiceExport names the clusters that may call the service, separated by commas.
// Without it every peer may.
const AudienceAnnotation = "isthmus.dev/audience"

// Meta is what every object has.
type Meta struct {
	Source
	Kind      string
	Namespace string // empty for cluster-scoped kinds
	Name      string
	// Created is when the object came to be, in whole seconds: the older of two exports wins a conflict (KEP-1645).
	Created time.Time
}

// Object returns "Kind namespace/name".
func (m Meta) Object() string {
	if m.Namespace == "" {
		return m.Kind + " " + m.Name
	}
	return m.Kind + " " + m.Namespace + "/" + m.Name
}

// Service is a v1 Service.
type Service struct {
	Meta

	ID           topology.ServiceName
	ExternalName bool // of type ExternalName: can't be exported
	Headless     bool
	ClusterIPs   []netip.Addr
	Ports        []ServicePort
	// Selector picks the Workloads that serve it; empty: only EndpointSlices name copies.
	Selector map[string]string

	SessionAffinity        federation.Affinity
	SessionAffinityTimeout time.Duration // of ClientIP, whole seconds
	InternalTrafficPolicy  string        // "Cluster" or "Local"; empty: not set
	TrafficDistribution    string        // empty: not set
	IPFamilies             []string      // "IPv4", "IPv6"; empty: not set
	// PublishNotReady: its copies count as ready from the start (publishNotReadyAddresses).
	PublishNotReady bool
}

// ServicePort is a port of a Service.
type ServicePort struct {
	Name        string
	Number      uint16
	Transport   federation.Transport
	AppProtocol string // verbatim
	// Target is where the application listens: a name, or else a number.
	TargetName   string
	TargetNumber uint16
}

// EndpointSlice is a discovery.k8s.io/v1 EndpointSlice: copies of one service that have no sidecar.
type EndpointSlice struct {
	Meta

	Service   topology.ServiceName
	Ports     []SlicePort
	Endpoints []SliceEndpoint
}

// SlicePort is where the endpoints of a slice serve the service port of that name.
type SlicePort struct {
	Name      string
	Number    uint16
	Transport federation.Transport
}

// SliceEndpoint is one copy.
type SliceEndpoint struct {
	Address  netip.Addr
	Ready    bool
	Zone     string
	Hostname string
	Pod      string // that it is, by its name; empty: not known
}

// Workload is a running copy of an application (isthmus.dev/v1alpha1).
type Workload struct {
	Meta

	Labels         map[string]string
	ServiceAccount string
	Address        netip.Addr
	Ports          []WorkloadPort
	Zone           string // empty: the cluster's
	Ready          bool
	Inbound        uint16  // where its sidecar takes mTLS; 0: it has none
	UID            *uint32 `json:",omitempty"` // as whom its processes run on this machine; nil: not said
	// Hostname and Subdomain of its Pod: the copy has that name in the headless Service that the subdomain names.
	Hostname, Subdomain string
}

// hostname returns the name of the workload as a copy of s; empty when it has none.
func (w *Workload) hostname(s *Service) string {
	if w.Subdomain != s.Name {
		return ""
	}
	return w.Hostname
}

// ID returns "namespace/name", as the sidecar names its workload.
func (w *Workload) ID() string { return w.Namespace + "/" + w.Name }

// WorkloadPort is a port of the application.
type WorkloadPort struct {
	Name      string
	Number    uint16
	Transport federation.Transport `json:",omitempty"` // empty: not said, any
}

// ServiceExport says that a Service of its name may be called from other clusters.
type ServiceExport struct {
	Meta

	Service     topology.ServiceName
	Labels      map[string]string
	Annotations map[string]string
	Audience    []topology.ClusterName // who may call; empty: every peer
	APIVersion  string                 // as declared; its status is written back under the same
	// Generation counts the versions of its spec, where the registry does (metadata.generation): the conditions say which they are of.
	Generation int64
}

// ClusterPeer lets another cluster in (isthmus.dev/v1alpha1).
type ClusterPeer struct {
	Meta

	Cluster         topology.ClusterName
	Domain          spiffeid.TrustDomain
	RootFingerprint string   // "sha256:" and 64 lower-case hex digits
	BusURLs         []string // empty: we don't dial
	BusKey          string   // public NKey, "U…"
	// PodCIDRs are the prefixes in which the peer may say that its pods are.
	PodCIDRs []netip.Prefix
	// Namespaces are those in which its exports count; empty: all.
	Namespaces []string
	Generation int64 // as of a ServiceExport
}

// FederatedTrustDomain is another trust domain that is no cluster of the mesh (isthmus.dev/v1alpha1).
type FederatedTrustDomain struct {
	Meta

	Domain     spiffeid.TrustDomain
	Endpoint   bundleendpoint.Endpoint
	Initial    []byte // a bundle document that is known to be right; may be nil
	Generation int64  // as of a ServiceExport
}

// FailoverPolicy orders where calls to a service go (isthmus.dev/v1alpha1).
type FailoverPolicy struct {
	Meta

	Generation int64 // as of a ServiceExport
	Targets    []PolicyTarget
	Policy     topology.Policy
}

// RefusedPolicy is a FailoverPolicy that is not understood.
type RefusedPolicy struct {
	Meta

	Generation int64 // as of a ServiceExport
	Reason     string
}

// PolicyTarget is a service that a policy is for, named as ServiceImport or as Service; both mean the same calls. Or it is the policy's own
// Namespace: all services in it that no policy names.
type PolicyTarget struct {
	Kind    string
	Service topology.ServiceName // zero: the namespace
}

// AccessPolicy says who may call the workloads that it selects (isthmus.dev/v1alpha1).
type AccessPolicy struct {
	Meta

	Generation int64 // as of a ServiceExport
	Selects    Selection
	Audit      bool
	Issuers    []access.Issuer
	Rules      []AccessRule
	// Closed: what is declared is not understood, and no earlier version of it is known. Whatever others allow, it refuses everything
	// (RuleNotUnderstood).
	Closed bool
}

// AccessRule allows or denies; as access.Rule.
type AccessRule struct {
	Name  string
	Deny  bool
	From  []Caller
	To    []access.Operation
	Users []access.User
}

// Caller is who calls. Clusters and Domains are one list, in two spellings.
type Caller struct {
	access.Source

	Clusters []string // of peers; or topology.Same
}

// QuotaPolicy bounds how many requests the workloads that it selects take (isthmus.dev/v1alpha1).
type QuotaPolicy struct {
	Meta

	Generation int64 // as of a ServiceExport
	Selects    Selection
	Audit      bool
	Issuers    []access.Issuer
	Limits     []QuotaLimit
}

// QuotaLimit is one bound.
type QuotaLimit struct {
	Name     string
	Per      string // "caller", "end-user" or "service"
	Requests uint32
	Window   time.Duration
	Burst    uint32
	Shared   bool
	From     []Caller
	To       []access.Operation
}

// Selection says which workloads of its own namespace a policy is for: those with the labels, those behind the Services, or all.
type Selection struct {
	Labels   map[string]string
	Services []topology.ServiceName
}

// IsAll reports whether all workloads of the namespace are meant.
func (s Selection) IsAll() bool { return len(s.Labels) == 0 && len(s.Services) == 0 }
