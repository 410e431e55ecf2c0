package admin

import (
	"encoding/json"
	"time"
)

// Trust is whom a cluster trusts, and by what: GET /v1/trust.
type Trust struct {
	Cluster     string          `json:"cluster"`
	TrustDomain string          `json:"trust_domain"`
	Now         time.Time       `json:"now"` // by control's clock
	Authority   Authority       `json:"authority"`
	Rotation    Rotation        `json:"rotation"`
	Domains     []TrustedDomain `json:"domains"` // the own one first
	Revocations []Revocation    `json:"revocations"`
	// MemberRoot is what the federation's signing keys stand on; not of X.509, but it ends likewise.
	MemberRoot *Certificate `json:"member_root,omitempty"`
}

// Authority is who issues the domain's SVIDs.
type Authority struct {
	// Kind is "builtin", "files" or "workload-api".
	Kind         string        `json:"kind"`
	Source       string        `json:"source,omitempty"` // of an upstream: the file or the socket
	SVIDLifetime time.Duration `json:"svid_lifetime_ns,omitempty"`
	Issuing      *Certificate  `json:"issuing,omitempty"` // the CA that signs SVIDs
	// JWTKey is the key that signs JWT-SVIDs: since when, and when the next one is to take over.
	JWTKey  *Certificate `json:"jwt_key,omitempty"`
	Problem string       `json:"problem,omitempty"` // why the last step failed
}

// Certificate is what is of note of one.
type Certificate struct {
	Subject   string    `json:"subject"`
	State     string    `json:"state,omitempty"` // of a root: active, next or previous
	KeyID     string    `json:"key_id"`          // "sha256:" and the hex digits of the SHA-256 of its SubjectPublicKeyInfo
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
}

// TrustedDomain is a trust domain that is verified here.
type TrustedDomain struct {
	TrustDomain string `json:"trust_domain"`
	Cluster     string `json:"cluster,omitempty"` // of a peer, or the own one
	// Source is "own", "peer" (a ClusterPeer) or "endpoint" (a FederatedTrustDomain).
	Source   string        `json:"source"`
	State    string        `json:"state"` // of a peer: Waiting, Fresh, …; of others: Fresh, Stale, Failed; Revoked
	Reason   string        `json:"reason,omitempty"`
	Sequence uint64        `json:"sequence"`
	Issued   time.Time     `json:"issued"` // when its owner last said so
	Roots    []Certificate `json:"roots"`
	JWTKeys  []string      `json:"jwt_keys"` // key IDs
	// NotAfter is when the last of the roots ends.
	NotAfter time.Time `json:"not_after"`
	// Acknowledged is the sequence of OUR bundle that this peer has in force everywhere; 0: it has not said.
	Acknowledged uint64 `json:"acknowledged"`
	Revoked      int    `json:"revoked"` // revoked keys and IDs of that domain in force here
	// RevokedKeys are those keys, as key IDs, and RevokedIDs those IDs: what was issued up to then; zero: all. With the bundle document
	// they are all that SVIDs of the domain are verified with.
	RevokedKeys []string             `json:"revoked_keys,omitempty"`
	RevokedIDs  map[string]time.Time `json:"revoked_ids,omitempty"`
}

// The phases of a rotation of the root. Each can be undone until the next.
const (
	RotationIdle      = "idle"
	RotationPrepared  = "prepared"  // the next key is made; nobody is told
	RotationPublished = "published" // it is in the bundle; members are to acknowledge it
	RotationActivated = "activated" // it signs; the old root stays in the bundle until what it vouches for has ended
)

// Rotation is how far the change of the root has come.
type Rotation struct {
	Phase     string    `json:"phase"`
	Automatic bool      `json:"automatic"` // by the schedule, and not by an operator
	Since     time.Time `json:"since"`
	// NextStep is when the schedule takes the next step, if nothing holds it.
	NextStep time.Time `json:"next_step"`
	// Retires is when the old root leaves the bundle.
	Retires time.Time        `json:"retires,omitzero"`
	Members []RotationMember `json:"members"`
	// Holds is why the next step is not taken; empty: nothing holds it.
	Holds []string `json:"holds,omitempty"`
}

// RotationMember is somebody who has to have the next root in force before it signs.
type RotationMember struct {
	Name         string    `json:"name"` // "cluster us", "gateway gateway-0", "sidecar shop/web-0", "node node-0"
	Acknowledged bool      `json:"acknowledged"`
	LastHeard    time.Time `json:"last_heard"`
	Reason       string    `json:"reason,omitempty"` // why not yet
}

// RotationRequest moves a rotation: POST /v1/trust/rotation → Rotation.
type RotationRequest struct {
	// Step is "start" (prepare and publish), "prepare", "publish", "activate" or "abort".
	Step   string `json:"step"`
	Force  bool   `json:"force,omitempty"` // activate though somebody has not acknowledged
	DryRun bool   `json:"dry_run,omitempty"`
}

// Revocation ends trust in something: POST /v1/trust/revocations → Revocation; DELETE /v1/trust/revocations?subject=… undoes it.
type Revocation struct {
	// Subject is a trust domain, a SPIFFE ID, or the key ID of an SVID ("sha256:…").
	Subject string `json:"subject"`
	// Kind is "domain", "id" or "key"; given by control.
	Kind string `json:"kind,omitempty"`
	// Block refuses an ID also what would be issued to it from now on, until the revocation is undone.
	Block  bool      `json:"block,omitempty"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at,omitzero"`
	// Ends is when all that it speaks of has ended by itself; zero: it stays until it is undone. Asked for of a key: when its certificate ends.
	Ends time.Time `json:"ends,omitzero"`
	// TrustDomain is whose a key is, where that is known. Who asks may say it.
	TrustDomain string `json:"trust_domain,omitempty"`
	DryRun      bool   `json:"dry_run,omitempty"`
	Told        bool   `json:"told"`    // peers are told: the subject is of the own domain, or may be
	Bound       string `json:"bound"`   // how long until everybody has heard, in words
	Matches     int    `json:"matches"` // programs connected here that it ends
	// Affects is what it ends that can't be counted in programs of this cluster: a peer, or all below one root of it.
	Affects string `json:"affects,omitempty"`
	// Uncounted: whom it ends is not known here, and Matches says nothing.
	Uncounted bool `json:"uncounted,omitempty"`
}

// SVIDRequest asks the authority for an X.509-SVID for a key of the asker's: POST /v1/trust/svids → SVID.
type SVIDRequest struct {
	SPIFFEID string `json:"spiffe_id"`
	CSR      []byte `json:"csr"` // PKCS #10, DER
}

// SVID is a chain, leaf first, DER.
type SVID struct {
	SPIFFEID string   `json:"spiffe_id"`
	Chain    [][]byte `json:"chain"`
}

// RevocationsPath is where revocations are made (POST), and undone (DELETE, with the subject in the query).
const RevocationsPath = "/v1/trust/revocations"

// BundleDocument is a SPIFFE bundle document: GET /v1/trust/bundles/{trust domain}.
type BundleDocument = json.RawMessage
