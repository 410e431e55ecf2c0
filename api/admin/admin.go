// Package admin holds what the CLI and a program's admin listener say to each other, as JSON.
//
// control serves it over a Unix socket that only its user can open:
//
//	GET  /v1/status                 Status
//	GET  /v1/services               []Service      (likewise endpoints, peers, exports, imports)
//	GET  /v1/problems               []Problem
//	GET  /v1/introduction           Introduction
//	GET  /v1/proxies                []Proxy
//	DELETE /v1/proxies/{gateway|node}/{name}       takes it out of the roster: it gets no further identity
//	GET  /v1/drills                 []Drill
//	POST /v1/drills                 DrillRequest → Drill; PUT and DELETE /v1/drills/{id} renew and end it
//	GET  /v1/links                  []LinkDetail
//	GET  /v1/traffic?service=S&since=D              Traffic
//	POST /v1/tokens                 TokenRequest → Token
//	GET  /v1/trust                  Trust
//	GET  /v1/trust/bundles/{trust domain}          BundleDocument
//	GET  /v1/timeline?service=S&since=D             Timeline
//	GET  /v1/drains                 Drains
//	PUT  /v1/drains                 DrainRequest → Drains
//	DELETE /v1/drains?service=S[&dry_run=true] → Drains; without a service: the cluster's own
//	POST /v1/trust/rotation         RotationRequest → Rotation
//	POST /v1/trust/revocations      Revocation → Revocation
//	DELETE /v1/trust/revocations?subject=S         undoes it
//	POST /v1/trust/svids            SVIDRequest → SVID
//
// Errors are {"error": "..."} with a 4xx or 5xx status. A sidecar's admin listener serves GET /explain?to=NAME[&port=N] →
// topology.Explanation.
package admin

import "time"

// Status is a cluster at a glance.
type Status struct {
	Cluster     string        `json:"cluster"`
	TrustDomain string        `json:"trust_domain"`
	Region      string        `json:"region,omitempty"`
	Version     string        `json:"version"`
	Started     time.Time     `json:"started"`
	Now         time.Time     `json:"now"` // by control's clock
	Ready       bool          `json:"ready"`
	Missing     []string      `json:"missing,omitempty"` // what readiness waits for
	Manifests   ManifestState `json:"manifests"`
	Peers       []Peer        `json:"peers"`
	Links       []Link        `json:"links"`
	Proxies     []Proxy       `json:"proxies"`
	RootExpires time.Time     `json:"root_expires"`
	Services    int           `json:"services"`
	Exports     int           `json:"exports"`
	Imports     int           `json:"imports"`
	// Overloads are the called programs that have refused requests in the last minute because their applications had too much to do.
	Overloads []Overload `json:"overloads,omitempty"`
	// ClusterSetCIDR is where the addresses of imports come from.
	ClusterSetCIDR string `json:"cluster_set_cidr"`
}

// ManifestState says whether the folder of manifests is in force.
type ManifestState struct {
	Source   string    `json:"source"` // the folder
	Objects  int       `json:"objects"`
	Loaded   time.Time `json:"loaded"`
	Problems []Problem `json:"problems,omitempty"`
}

// Problem is one thing wrong in a manifest.
type Problem struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Object string `json:"object,omitempty"` // Kind namespace/name
	Reason string `json:"reason"`
	Note   bool   `json:"note,omitempty"` // it may well be meant, as that what is exported is scaled to zero
}

// Overload is a program whose application has more to do than it can: GET /v1/status. What is too much for it is refused as not executed, and goes elsewhere;
// where there is no elsewhere, callers get IST2110.
type Overload struct {
	Service string    `json:"service"`         // name.namespace
	Program string    `json:"program"`         // "sidecar/shop/checkout-0"
	Limit   int       `json:"limit,omitempty"` // requests that it takes at a time; 0: all, again
	Shed    uint64    `json:"shed"`            // refused since it connected
	Last    time.Time `json:"last"`            // when one was refused last
}

// Peer is another cluster, as control knows it.
type Peer struct {
	Cluster     string    `json:"cluster"`
	TrustDomain string    `json:"trust_domain"`
	Region      string    `json:"region,omitempty"`
	State       string    `json:"state"` // Waiting, Fresh, Stale, Frozen, Expired, Quarantined
	Reason      string    `json:"reason,omitempty"`
	Epoch       uint64    `json:"epoch"`
	Seq         uint64    `json:"seq"`
	Issued      time.Time `json:"issued"`
	Bus         string    `json:"bus"` // connected, connecting, inbound
	Gateways    int       `json:"gateways"`
	Services    int       `json:"services"`
	// As its ClusterPeer says:
	RootFingerprint string   `json:"root_fingerprint"`
	BusKey          string   `json:"bus_key"`
	BusURLs         []string `json:"bus_urls,omitempty"`
	PodCIDRs        []string `json:"pod_cidrs,omitempty"`
	Namespaces      []string `json:"namespaces,omitempty"` // in which its exports count; none: all
}

// Link is what one local gateway reports of the links to one peer cluster.
type Link struct {
	Gateway     string        `json:"gateway"` // the local one
	Cluster     string        `json:"cluster"`
	State       string        `json:"state"`               // up, suspect, down; unknown: the gateway is not connected
	Transport   string        `json:"transport,omitempty"` // that new streams take: quic, tcp
	Why         string        `json:"why,omitempty"`       // why that one
	Connections int           `json:"connections"`
	RTT         time.Duration `json:"rtt_ns"`
	Detail      string        `json:"detail,omitempty"`
	Reported    time.Time     `json:"reported"`
}

// Proxy is a gateway, sidecar or node proxy that the config stream knows.
type Proxy struct {
	Program   string    `json:"program"` // gateway, sidecar, node
	Name      string    `json:"name"`
	SPIFFEID  string    `json:"spiffe_id"`
	Version   string    `json:"version"`
	Admin     string    `json:"admin"` // host:port
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`
	Services  []string  `json:"services,omitempty"` // that a sidecar subscribed to
	// SVIDEnds is when the SVID ends that was issued to it last; zero: none was since control started.
	SVIDEnds time.Time `json:"svid_ends,omitzero"`
}

// Service is a service of the own cluster.
type Service struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Ports     []string `json:"ports"` // "80/http"
	Endpoints int      `json:"endpoints"`
	Ready     int      `json:"ready"`
	Exported  bool     `json:"exported"`
	Imported  bool     `json:"imported"`
}

// Endpoint is a copy that this cluster knows: its own one by one, another cluster's as a whole.
type Endpoint struct {
	Service  string   `json:"service"` // name.namespace
	Cluster  string   `json:"cluster"`
	ID       string   `json:"id,omitempty"`
	Address  string   `json:"address,omitempty"`
	SPIFFEID []string `json:"spiffe_ids"`
	Zone     string   `json:"zone,omitempty"`
	Ready    int      `json:"ready"`
	Capacity int      `json:"capacity"`
	StandIn  bool     `json:"stand_in,omitempty"`
	Stale    bool     `json:"stale,omitempty"`
}

// Export is a ServiceExport with its conditions.
type Export struct {
	Namespace  string      `json:"namespace"`
	Name       string      `json:"name"`
	Ports      []string    `json:"ports"`
	Audience   []string    `json:"audience,omitempty"`
	Conditions []Condition `json:"conditions"`
}

// Import is a ServiceImport: a service that the clusterset offers.
type Import struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Type      string   `json:"type"`
	IPs       []string `json:"ips"`
	Ports     []string `json:"ports"`
	Clusters  []string `json:"clusters"`

	Conditions []Condition `json:"conditions"`
}

// Condition is a Kubernetes condition.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
}

// Introduction is what another cluster's ClusterPeer must say to let this cluster in.
type Introduction struct {
	Cluster         string   `json:"cluster"`
	TrustDomain     string   `json:"trust_domain"`
	RootFingerprint string   `json:"root_fingerprint"`
	BusKey          string   `json:"bus_key"`
	BusURLs         []string `json:"bus_urls"`
	// PodCIDRs are the prefixes that the cluster's pods are in, as far as they are known.
	PodCIDRs []string `json:"pod_cidrs,omitempty"`
	// Namespaces are those in which its exports are to count; it is for the cluster that lets it in to say. None: all.
	Namespaces []string `json:"namespaces,omitempty"`
}

// TokenRequest asks for a single-use join token for one program. Exactly one field is set.
type TokenRequest struct {
	Workload string `json:"workload,omitempty"` // namespace/name
	Gateway  string `json:"gateway,omitempty"`  // id
	Node     string `json:"node,omitempty"`     // name of a node proxy
}

// Token is a join token. It is good once, until Expires.
type Token struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}
