package trust

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Explanation is why a chain passes, or where it breaks.
type Explanation struct {
	ID     spiffeid.ID // who the leaf says it is; zero when that can't be read
	Peer   Peer        // when it passes
	Reason Reason      // why it does not; 0: it passes
	// Steps are what is looked at, in order. All are OK exactly when it passes. Those after the one that breaks are left out where they
	// would mean nothing.
	Steps []Step
}

// Step is one thing that is looked at.
type Step struct {
	Name StepName
	OK   bool
	Text string // what was found
}

// StepName says what a step is about. The words are stable.
type StepName string

// The steps, in order.
const (
	StepShown       StepName = "shown"       // how many certificates
	StepID          StepName = "id"          // the leaf's SPIFFE ID
	StepSVID        StepName = "svid"        // whether the leaf may be an SVID
	StepBundle      StepName = "bundle"      // whether its trust domain is trusted, and by which roots
	StepSigned      StepName = "signed"      // who signed a certificate; one step for each
	StepTime        StepName = "time"        // whether all of them are valid now
	StepAuthorities StepName = "authorities" // whether the CAs are of the leaf's trust domain, and may do what they did
	StepRevoked     StepName = "revoked"     // whether anything was revoked
)

// Explain verifies as Verify does, with the same code, and tells step by step what it found.
func (b *Bundles) Explain(chain []*x509.Certificate, now time.Time) Explanation {
	peer, d, err := b.verify(chain, now)
	e := explainer{chain: chain, now: now, d: d, known: b.load()}
	e.Peer = peer
	if refused, ok := errors.AsType[*VerifyError](err); ok {
		e.ID, e.Reason, e.err = refused.ID, refused.Reason, refused.Err
	} else {
		e.ID = peer.ID
	}
	e.explain()
	if e.Reason != 0 && !slices.ContainsFunc(e.Steps, func(s Step) bool { return !s.OK }) {
		// The verifier saw what the steps do not show: name constraints, say.
		e.step(StepAuthorities, false, "%v", e.err)
	}
	return e.Explanation
}

// explainer follows a verification that has been made.
type explainer struct {
	Explanation

	chain []*x509.Certificate
	now   time.Time
	d     *domainTrust // nil: the domain is unknown, or there is none
	known bundleSet
	err   error // the verifier's evidence
}

func (e *explainer) step(name StepName, ok bool, format string, args ...any) {
	e.Steps = append(e.Steps, Step{Name: name, OK: ok, Text: fmt.Sprintf(format, args...)})
}

func (e *explainer) explain() {
	switch n := len(e.chain); {
	case n == 0:
		e.step(StepShown, false, "no certificate")
		return
	case n > maxChain:
		e.step(StepShown, false, "%d certificates, at most %d", n, maxChain)
	default:
		e.step(StepShown, true, "%d certificates, the leaf's key is %s", n, KeyID(e.chain[0]))
	}
	if e.ID.IsZero() {
		e.step(StepID, false, "%v", e.err)
		return
	}
	e.step(StepID, true, "%s", e.ID)
	if e.Reason == BadSVID {
		e.step(StepSVID, false, "%v", e.err)
		return
	}
	if len(e.chain) > maxChain {
		return
	}
	e.step(StepSVID, true, "the only URI name, no CA, may sign in TLS, for servers and clients")
	if e.d == nil {
		e.step(StepBundle, false, "no bundle of %s; there is one of %s", e.ID.TrustDomain(), e.domains())
		return
	}
	e.step(StepBundle, len(e.d.bundle.Authorities) > 0, "%s has %s", e.ID.TrustDomain(), e.rootNames())
	var path []*x509.Certificate
	if e.Reason == 0 {
		path, _ = e.d.path(e.ID, e.chain, e.now) // again as just now
		for i, c := range path[:len(path)-1] {
			e.step(StepSigned, true, "%s is signed by %s", e.name(c), e.name(path[i+1]))
		}
	} else {
		path = e.walk()
	}
	e.times(path)
	e.authorities(path)
	e.revoked(path)
}

// walk goes from the leaf to a root as far as signatures lead, whatever else is wrong.
func (e *explainer) walk() []*x509.Certificate {
	path := e.chain[:1:1]
	for {
		c := path[len(path)-1]
		if e.isRoot(c) {
			if len(path) == 1 {
				e.step(StepSigned, false, "%s is its own authority: an SVID must not be among the roots", e.name(c))
			}
			return path
		}
		parent := e.parent(c, path)
		if parent == nil {
			e.step(StepSigned, false, "%s %s", e.name(c), e.unsigned(c))
			return path
		}
		if !parent.BasicConstraintsValid || !parent.IsCA || parent.KeyUsage != 0 && parent.KeyUsage&x509.KeyUsageCertSign == 0 {
			e.step(StepSigned, false, "%s is signed by %s, which is no CA", e.name(c), e.name(parent))
			return append(path, parent)
		}
		e.step(StepSigned, true, "%s is signed by %s", e.name(c), e.name(parent))
		path = append(path, parent)
	}
}

func (e *explainer) isRoot(c *x509.Certificate) bool {
	return slices.ContainsFunc(e.d.bundle.Authorities, c.Equal)
}

// parent finds whose key signed c: a root first.
func (e *explainer) parent(c *x509.Certificate, path []*x509.Certificate) *x509.Certificate {
	for _, candidate := range slices.Concat(e.d.bundle.Authorities, e.chain[1:]) {
		if !slices.ContainsFunc(path, candidate.Equal) && signedBy(c, candidate) {
			return candidate
		}
	}
	return nil
}

func signedBy(c, by *x509.Certificate) bool {
	return string(c.RawIssuer) == string(by.RawSubject) && by.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// unsigned says what is known of who signed a certificate, if none of those did whom it could be.
func (e *explainer) unsigned(c *x509.Certificate) string {
	for td, d := range e.known {
		if td != e.ID.TrustDomain() && slices.ContainsFunc(d.bundle.Authorities, func(root *x509.Certificate) bool { return signedBy(c, root) }) {
			return fmt.Sprintf("is signed by a root of %s, which may not speak for %s", td, e.ID.TrustDomain())
		}
	}
	sameName := func(o *x509.Certificate) bool { return string(c.RawIssuer) == string(o.RawSubject) }
	switch issuer := quoted(c.Issuer.CommonName, c.Issuer.String()); {
	case slices.ContainsFunc(e.d.bundle.Authorities, sameName):
		return fmt.Sprintf("is signed by %s, but not with the key that the root of that name has here: the bundle here is an older one, or somebody pretends", issuer)
	case slices.ContainsFunc(e.chain[1:], sameName):
		return fmt.Sprintf("names %s as its issuer, whose key did not sign it", issuer)
	default:
		return fmt.Sprintf("is signed by %s, which is no root of %s here, and was not sent along", issuer, e.ID.TrustDomain())
	}
}

func (e *explainer) times(path []*x509.Certificate) {
	ok := true
	outside := func(c *x509.Certificate) {
		switch {
		case e.now.Before(c.NotBefore):
			e.step(StepTime, false, "%s is valid from %s, in %s: is a clock wrong?", e.name(c), moment(c.NotBefore), span(c.NotBefore.Sub(e.now)))
		case e.now.After(c.NotAfter):
			e.step(StepTime, false, "%s ended at %s, %s ago", e.name(c), moment(c.NotAfter), span(e.now.Sub(c.NotAfter)))
		default:
			return
		}
		ok = false
	}
	for _, c := range path {
		outside(c)
	}
	if e.Reason == Expired && ok { // it is one that did not come to be on the path
		for _, c := range slices.Concat(e.chain, e.d.bundle.Authorities) {
			outside(c)
		}
	}
	if ok {
		first := slices.MinFunc(path, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
		e.step(StepTime, true, "all are valid; %s ends first, at %s, in %s", e.name(first), moment(first.NotAfter), span(first.NotAfter.Sub(e.now)))
	}
}

func (e *explainer) authorities(path []*x509.Certificate) {
	for _, ca := range path[1:] {
		for _, u := range ca.URIs {
			if of, err := spiffeid.FromURI(u); err != nil || of.TrustDomain() != e.ID.TrustDomain() {
				e.step(StepAuthorities, false, "%s is an authority of %q, not of %s", e.name(ca), u, e.ID.TrustDomain())
				return
			}
		}
	}
	if e.Reason == 0 {
		e.step(StepAuthorities, true, "%d above the SVID, all of %s", len(path)-1, e.ID.TrustDomain())
	}
}

func (e *explainer) revoked(path []*x509.Certificate) {
	if e.Reason == Revoked && e.d.bundle.RevokesID(e.ID, e.chain[0].NotBefore) {
		e.step(StepRevoked, false, "%s: %v", e.ID, e.d.whyRevoked(e.ID))
		return
	}
	for _, c := range path {
		if _, ok := e.d.bundle.Revoked[Fingerprint(c)]; ok {
			e.step(StepRevoked, false, "the key of %s: %s", e.name(c), KeyID(c))
			return
		}
	}
	if e.Reason == 0 {
		e.step(StepRevoked, true, "nothing of this; %d keys and %d IDs of %s are", len(e.d.bundle.Revoked), len(e.d.bundle.RevokedIDs), e.ID.TrustDomain())
	}
}

// name is what a person calls a certificate: its place in the chain, or that it is a root, and its subject.
func (e *explainer) name(c *x509.Certificate) string {
	subject := ""
	if s := c.Subject.String(); s != "" {
		subject = " " + quoted(c.Subject.CommonName, s)
	}
	if i := slices.IndexFunc(e.chain, c.Equal); i >= 0 && (i == 0 || e.d == nil || !e.isRoot(c)) {
		return fmt.Sprintf("certificate %d%s", i+1, subject)
	}
	return "the root" + subject
}

// quoted is the first of names that says something, so that no certificate writes to a terminal.
func quoted(names ...string) string {
	for _, n := range names {
		if n != "" {
			return fmt.Sprintf("%q", n)
		}
	}
	return `""`
}

func (e *explainer) rootNames() string {
	switch n := len(e.d.bundle.Authorities); n {
	case 0:
		return "no root here"
	case 1:
		return "one root here"
	default:
		return fmt.Sprintf("%d roots here", n)
	}
}

// maxNamed is how many domains are listed.
const maxNamed = 10

func (e *explainer) domains() string {
	var names []string
	for td := range e.known {
		names = append(names, td.Name())
	}
	slices.Sort(names)
	switch n := len(names); {
	case n == 0:
		return "nobody"
	case n > maxNamed:
		return strings.Join(names[:maxNamed], ", ") + fmt.Sprintf(" and %d more", n-maxNamed)
	}
	return strings.Join(names, ", ")
}

// KeyID is how a key is named to people: "sha256:" and the hex digits of the certificate's Fingerprint.
func KeyID(cert *x509.Certificate) string {
	sum := Fingerprint(cert)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func moment(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// span is a time span as long as it needs to be said.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return d.Round(time.Second).String()
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// ExplainID says whether an SVID of an ID that its authority issued now would pass, as far as that can be said without it: whether the trust
// domain is known, has a root that is valid, and the ID is not revoked.
func (b *Bundles) ExplainID(id spiffeid.ID, now time.Time) Explanation {
	set := b.load()
	e := explainer{now: now, known: set, d: set[id.TrustDomain()]}
	e.ID = id
	refuse := func(reason Reason, name StepName, format string, args ...any) Explanation {
		e.Reason = reason
		e.step(name, false, format, args...)
		return e.Explanation
	}
	if id.Path() == "" {
		return refuse(BadSVID, StepID, "%s has no path: it names a trust domain, not a member", id)
	}
	e.step(StepID, true, "%s", id)
	switch {
	case e.d == nil:
		return refuse(UnknownDomain, StepBundle, "no bundle of %s; there is one of %s", id.TrustDomain(), e.domains())
	case len(e.d.bundle.Authorities) == 0:
		return refuse(BadChain, StepBundle, "%s has no root here", id.TrustDomain())
	}
	e.step(StepBundle, true, "%s has %s", id.TrustDomain(), e.rootNames())
	var last time.Time
	for _, root := range e.d.bundle.Authorities {
		if _, revoked := e.d.bundle.Revoked[Fingerprint(root)]; !revoked && !now.Before(root.NotBefore) && root.NotAfter.After(last) {
			last = root.NotAfter
		}
	}
	if now.After(last) {
		return refuse(Expired, StepTime, "none of its roots is valid now, and not revoked")
	}
	e.step(StepTime, true, "its last root ends at %s, in %s", moment(last), span(last.Sub(now)))
	if e.d.bundle.RevokesID(id, now) {
		return refuse(Revoked, StepRevoked, "%v", e.d.whyRevoked(id))
	}
	text := "the ID is not"
	if until, ok := e.d.bundle.RevokedIDs[id]; ok {
		text = fmt.Sprintf("what was issued up to %s is; what is issued now is not", moment(until))
	}
	e.step(StepRevoked, true, "%s", text)
	return e.Explanation
}
