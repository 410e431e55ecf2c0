// Package access says who may call what: AccessPolicies, compiled ahead, asked once per request in the sidecar of the called workload.
//
// It is pure: it reads no clock and no network, and a decision allocates nothing.
package access

import "github.com/spiffe/go-spiffe/v2/spiffeid"

// Policy is an AccessPolicy, with the clusters that it names turned into trust domains.
type Policy struct {
	Name    string // namespace/name of the object
	Audit   bool   // what it would refuse is told, and let through
	Rules   []Rule
	Issuers []Issuer
}

// Rule lets requests through, or refuses them. Each of From, To and Users matches if one of its entries does, and if it has none.
type Rule struct {
	Name  string
	Deny  bool
	From  []Source
	To    []Operation
	Users []User
}

// Source is who calls. All fields that are set must match; a list does if one of its entries does.
type Source struct {
	Principals      []Pattern // of a whole SPIFFE ID
	Domains         []spiffeid.TrustDomain
	Namespaces      []string
	ServiceAccounts []string
	Nobody          bool // it names only what does not exist: it matches nobody
}

// Operation is what is asked for; as Source.
type Operation struct {
	Methods []string
	Paths   []Pattern // of the normal form of a path
	Ports   []uint16  // where the application listens
	Headers []Header
}

// Header matches if the header is there and one of its values matches one of Values, or any where there are none; or if it is absent.
type Header struct {
	Name   string // in canonical form
	Values []Pattern
	Absent bool
}

// User is an end user whose token came with the request.
type User struct {
	Issuer string // name of an Issuer of the policy; empty: any of them
	Claims []Claim
}

// Claim matches if the claim, or one element of it where it is a list, matches one of Values.
type Claim struct {
	Path   []string // names of nested objects, outermost first
	Values []Pattern
}

// Issuer is whose tokens are believed.
type Issuer struct {
	Name      string // by which rules call it
	Issuer    string // the claim "iss"
	Audiences []string
	// Where its keys come from, one of these: the document itself, the name of a file in the sidecar's folder of such, or a URL.
	JWKS, JWKSFile, JWKSURL string
	Header                  string // that the token is in; empty: Authorization, with the scheme Bearer
}

// Kind is how a Pattern compares. There are no regular expressions: nobody reads them alike, and they cost what the sender wants.
type Kind uint8

// The kinds of pattern.
const (
	Exact Kind = iota
	Prefix
	Suffix
)

// Pattern matches text.
type Pattern struct {
	Text string
	Kind Kind
}
