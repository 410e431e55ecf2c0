package topology

// Target is one place a call can go: an endpoint of the own cluster, or another cluster as a whole (whose
// gateway picks the copy). Comparable, so that health and load can be kept by it.
type Target struct {
	Service  ServiceName
	Cluster  ClusterName
	Endpoint string // Endpoint.ID in the own cluster; empty for another cluster
}

// Scope says which copies a name speaks of.
type Scope uint8

const (
	// ClusterSet is <name>.<ns>.svc.clusterset.local: exported copies, everywhere.
	ClusterSet Scope = iota
	// ClusterLocal is <name>.<ns>.svc.cluster.local: copies in the own cluster only.
	ClusterLocal
)

// Query is what a caller asks for.
type Query struct {
	Service ServiceName
	Port    uint16
	Scope   Scope
}

// Load is what the caller knows by itself: targets that its own requests found wanting, and until when is its affair.
// The value is the evidence, in words ("3 resets in a row").
type Load map[Target]string

// Plan, Choose and Explain follow in the package's own files.
