package access

import (
	"fmt"
	"net/http"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Request is what is asked of a workload. Nothing in it is kept.
type Request struct {
	Caller spiffeid.ID // of the caller's verified certificate; zero: nobody, whom no policy lets in
	Port   uint16      // where the application listens
	HTTP   bool        // false: bytes that nobody reads (opaque TCP), and nothing below counts
	Method string
	// Path is the request target as it came (http.Request.RequestURI), query and all: it is put in normal form here, once.
	Path   string
	Header http.Header // keys in canonical form, as net/http has them
	// Tokens are the end users, one for each of Set.Issuers and in its order. Those that are missing at the end are absent.
	// Who verifies them may ask Admits before: a signature costs more than a decision.
	Tokens []Token
}

// Reason says why a request was let through or refused.
type Reason uint8

// Reasons, with their words for logs and metrics. New ones may come; the words of those that are here stay.
const (
	NotReady       Reason = iota // "not_ready": there is no Set at all (the zero Decision)
	NoPolicy                     // "no_policy": allowed, as no policy speaks of the workload
	AllowedByRule                // "allowed_by_rule"
	DeniedByRule                 // "denied_by_rule"
	NoRuleAllows                 // "no_rule_allows"
	NoCaller                     // "no_caller": the caller has no identity
	BadPath                      // "bad_path": the path can't be read, so a Deny rule with paths matches, or no Allow rule with paths does
	AmbiguousPath                // "ambiguous_path": servers read the path in more than one way
	UserMissing                  // "user_missing": a rule would allow it to an end user, and there is no token
	UserInvalid                  // "user_invalid": there is a token, and it is no good
	UserNotAllowed               // "user_not_allowed": the token is good, and its claims are not those that a rule wants
)

var reasons = [...]string{
	NotReady: "not_ready", NoPolicy: "no_policy", AllowedByRule: "allowed_by_rule", DeniedByRule: "denied_by_rule", NoRuleAllows: "no_rule_allows",
	NoCaller: "no_caller", BadPath: "bad_path", AmbiguousPath: "ambiguous_path", UserMissing: "user_missing", UserInvalid: "user_invalid",
	UserNotAllowed: "user_not_allowed",
}

// Reasons returns all of them.
func Reasons() []Reason {
	all := make([]Reason, len(reasons))
	for k := range all {
		all[k] = Reason(k)
	}
	return all
}

// String is the word for it.
func (r Reason) String() string {
	if int(r) < len(reasons) {
		return reasons[r]
	}
	return fmt.Sprintf("reason_%d", uint8(r))
}

// Verdict is an answer, and where it comes from.
type Verdict struct {
	Allowed bool
	Reason  Reason
	// Policy (namespace/name) and Rule decided. No rule: the policy is the first of those that speak of the workload.
	// No policy: none does.
	Policy, Rule string
}

// Decision is what became of a request. The zero value refuses.
type Decision struct {
	Verdict
	// Audit is the same of policies in audit mode, for logs and metrics alone: Allowed with NoPolicy where there are none.
	Audit Verdict
}
