package trust

import (
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestExplain(t *testing.T) {
	a, b := rootOf(t, domainA), rootOf(t, domainB)
	issuing := a.sub(caTemplate(t, "a.test"))
	svid := issuing.svid(spiffeid.RequireFromString(shop)).Certificates
	both := map[spiffeid.TrustDomain]*testCA{domainA: a, domainB: b}
	now := time.Now()
	stranger := newRoot(t, caTemplate(t, "c.test"))
	notCA := caTemplate(t, "a.test")
	notCA.IsCA, notCA.KeyUsage = false, x509.KeyUsageDigitalSignature
	constrained := caTemplate(t, "a.test")
	constrained.ExcludedURIDomains = []string{"a.test"}
	foreign := caTemplate(t, "b.test")
	id := spiffeid.RequireFromString(shop)
	for _, test := range []struct {
		name   string
		chain  []*x509.Certificate
		change func(*Bundle) // of a.test
		now    time.Time
		want   Reason
		breaks StepName
		part   string // of the step that breaks, or of any when none does
	}{
		{name: "sound", chain: svid, part: "certificate 2 \"a.test\" is signed by the root \"a.test\""},
		{name: "nothing shown", want: BadSVID, breaks: StepShown},
		{name: "too much shown", chain: append(slices.Clone(svid), slices.Repeat(svid[1:], 8)...), want: BadChain, breaks: StepShown, part: "at most 8"},
		{name: "no ID", chain: []*x509.Certificate{a.create(leafTemplate(t), a.cert, newKey(t))}, want: BadSVID, breaks: StepID, part: "no URI SAN"},
		{name: "a domain's ID", chain: []*x509.Certificate{a.cert}, want: BadSVID, breaks: StepSVID, part: "no path"},
		{name: "a CA", chain: []*x509.Certificate{a.create(leafCA(t), a.cert, newKey(t))}, want: BadSVID, breaks: StepSVID, part: "CA"},
		{name: "unknown domain", chain: stranger.svid(spiffeid.RequireFromString("spiffe://c.test/x")).Certificates, want: UnknownDomain, breaks: StepBundle, part: "a.test, b.test"},
		{name: "CA not sent", chain: svid[:1], want: BadChain, breaks: StepSigned, part: "with the key that the root of that name has"},
		{name: "another's root", chain: stranger.svid(id).Certificates, want: BadChain, breaks: StepSigned, part: "\"c.test\", which is no root of a.test here"},
		{name: "the other domain's root", chain: b.svid(id).Certificates, want: BadChain, breaks: StepSigned, part: "a root of b.test, which may not speak for a.test"},
		{name: "signed by no CA", chain: a.sub(notCA).svid(id).Certificates, want: BadChain, breaks: StepSigned, part: "which is no CA"},
		{name: "CA of another domain", chain: a.sub(foreign).svid(id).Certificates, want: BadChain, breaks: StepAuthorities, part: "spiffe://b.test"},
		{name: "name constraints", chain: a.sub(constrained).svid(id).Certificates, want: BadChain, breaks: StepAuthorities, part: "excluded"},
		{name: "ended", chain: svid, now: now.Add(2 * time.Hour), want: Expired, breaks: StepTime, part: "certificate 1 ended at"},
		{name: "not begun", chain: svid, now: now.Add(-30 * time.Minute), want: Expired, breaks: StepTime, part: "is a clock wrong"},
		{name: "root ended", chain: svid, now: now.Add(1000 * time.Hour), want: Expired, breaks: StepTime, part: "the root"},
		{name: "no roots", chain: svid, change: func(b *Bundle) { b.Authorities = nil }, want: BadChain, breaks: StepBundle, part: "no root"},
		{name: "leaf among the roots", chain: svid, change: func(b *Bundle) { b.Authorities = svid[:1] }, want: BadChain, breaks: StepSigned, part: "its own authority"},
		{name: "key revoked", chain: svid, change: func(b *Bundle) { b.Revoked = map[[32]byte]struct{}{Fingerprint(svid[1]): {}} }, want: Revoked, breaks: StepRevoked, part: KeyID(svid[1])},
		{name: "ID revoked", chain: svid, change: func(b *Bundle) { b.RevokedIDs = map[spiffeid.ID]time.Time{id: now} }, want: Revoked, breaks: StepRevoked, part: "up to"},
		{name: "ID blocked", chain: svid, change: func(b *Bundle) { b.RevokedIDs = map[spiffeid.ID]time.Time{id: {}} }, want: Revoked, breaks: StepRevoked, part: "blocked"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bundles := bundlesOf(both)
			if test.change != nil {
				bundle := a.bundle()
				test.change(&bundle)
				bundles.Set(domainA, bundle)
			}
			at := now
			if !test.now.IsZero() {
				at = test.now
			}
			e := bundles.Explain(test.chain, at)
			if e.Reason != test.want {
				t.Fatalf("reason %q, want %q: %+v", e.Reason, test.want, e.Steps)
			}
			if !slices.ContainsFunc(e.Steps, func(s Step) bool {
				return s.OK == (test.want == 0) && (test.breaks == "" || s.Name == test.breaks) && strings.Contains(s.Text, test.part)
			}) {
				t.Errorf("want it to break at %q, with %q: %+v", test.breaks, test.part, e.Steps)
			}
		})
	}
}

func leafCA(t *testing.T) *x509.Certificate {
	t.Helper()
	c := leafTemplate(t, shop)
	c.IsCA = true
	return c
}
