package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"pgregory.net/rapid"
)

// A drawn world is two trust domains that each have two roots, a chain that is sound, and up to three faults: things that a careless or a
// hostile authority does, or that time does. rapid finds the fewest that show a difference.

// chainTime is when drawn chains are verified. Times in certificates have whole seconds.
var chainTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// chainKeys are made once; a key that comes twice is a case of its own.
var chainKeys = sync.OnceValue(func() []*ecdsa.PrivateKey {
	keys := make([]*ecdsa.PrivateKey, 24)
	for i := range keys {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			panic(err)
		}
		keys[i] = k
	}
	return keys
})

// certPlan is a certificate to be made.
type certPlan struct {
	template x509.Certificate
	key      int  // of chainKeys
	forged   bool // signed by a key that is nobody's
	renamed  bool // names an issuer that is not the one that signs
}

// chainPlan is a world before it is made.
type chainPlan struct {
	domain string // of the leaf's ID, as a rule
	anchor int    // which root signs: 0 and 1 its domain's, 2 the other domain's, 3 one that nobody trusts
	cas    []*certPlan
	leaf   *certPlan
	now    time.Time

	present []func(w *chainWorld) // what happens to the chain that is shown, and to the bundles
}

// chainWorld is what was made.
type chainWorld struct {
	t       *rapid.T
	plan    *chainPlan
	roots   [4]*x509.Certificate
	rootKey [4]*ecdsa.PrivateKey
	path    []*x509.Certificate // leaf first, without the root
	chain   []*x509.Certificate // as it is shown
	bundles map[string]oracleBundle
}

const (
	domainName = "a.test"
	otherName  = "b.test"
)

func (p *chainPlan) caTemplate(name, domain string) x509.Certificate {
	return x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: p.now.Add(-time.Hour), NotAfter: p.now.Add(100 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: -1, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: domain}},
	}
}

func drawChain(t *rapid.T) *chainPlan {
	p := &chainPlan{domain: domainName, now: chainTime, anchor: rapid.IntRange(0, 1).Draw(t, "root")}
	for i := range rapid.IntRange(0, 3).Draw(t, "CAs") {
		p.cas = append(p.cas, &certPlan{template: p.caTemplate(fmt.Sprintf("CA %d", i), p.domain), key: 8 + i})
	}
	p.leaf = &certPlan{key: 16, template: x509.Certificate{
		NotBefore: p.now.Add(-time.Minute), NotAfter: p.now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, MaxPathLen: -1,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: p.domain, Path: "/ns/shop/sa/checkout"}},
	}}
	for range rapid.IntRange(0, 3).Draw(t, "number of faults") {
		name := rapid.SampledFrom(chainFaultNames()).Draw(t, "fault")
		i := slices.IndexFunc(chainFaults, func(f chainFault) bool { return f.name == name })
		chainFaults[i].do(t, p)
	}
	return p
}

// chainFault changes a plan.
type chainFault struct {
	name string
	do   func(t *rapid.T, p *chainPlan)
}

func chainFaultNames() (names []string) {
	for _, f := range chainFaults {
		names = append(names, f.name)
	}
	return names
}

// any draws one of the CAs, or the leaf.
func (p *chainPlan) any(t *rapid.T) *certPlan {
	return append([]*certPlan{p.leaf}, p.cas...)[rapid.IntRange(0, len(p.cas)).Draw(t, "certificate")]
}

// ca draws one of the CAs; there may be none.
func (p *chainPlan) ca(t *rapid.T, change func(*certPlan)) {
	if len(p.cas) > 0 {
		change(p.cas[rapid.IntRange(0, len(p.cas)-1).Draw(t, "CA")])
	}
}

func ofCA(change func(*certPlan)) func(*rapid.T, *chainPlan) {
	return func(t *rapid.T, p *chainPlan) { p.ca(t, change) }
}

func ofAny(change func(*certPlan)) func(*rapid.T, *chainPlan) {
	return func(t *rapid.T, p *chainPlan) { change(p.any(t)) }
}

func ofLeaf(change func(*x509.Certificate)) func(*rapid.T, *chainPlan) {
	return func(_ *rapid.T, p *chainPlan) { change(&p.leaf.template) }
}

func shown(change func(*chainWorld)) func(*rapid.T, *chainPlan) {
	return func(_ *rapid.T, p *chainPlan) { p.present = append(p.present, change) }
}

// oddIDs are what a leaf may say for its ID, byte for byte.
var oddIDs = []string{
	"spiffe://a.test", "spiffe://a.test/", "spiffe://a.test//x", "spiffe://a.test/x/", "spiffe://a.test/x/../y", "spiffe://a.test/./x",
	"spiffe://A.TEST/x", "SPIFFE://a.test/x", "spiffe://a.test:80/x", "spiffe://a.test:/x", "spiffe://u@a.test/x", "spiffe://a.test./x",
	"spiffe://x.a.test/x", "spiffe://b.test/x", "spiffe://test/x", "spiffe://aa.test/x", "spiffe://b.test@a.test/x", "spiffe://a.test@b.test/x",
	"spiffe://a.test/x?y", "spiffe://a.test/x?", "spiffe://a.test/x#y", "spiffe://a.test/x#", "spiffe://a.test/x%2fy", "spiffe://a.test/%78",
	"spiffe:///x", "https://a.test/x", "a.test/x", "", "spiffe://a_b.test/x", "spiffe://a.test/X.y_z-0", "spiffe://c.test/x",
	"spiffe://a.test/" + strings.Repeat("x", 2048-len("spiffe://a.test/")), "spiffe://a.test/" + strings.Repeat("x", 2049-len("spiffe://a.test/")),
}

var caURIs = []string{"spiffe://b.test", "spiffe://A.TEST", "spiffe://a.test:80", "spiffe://x.a.test", "spiffe://a.test/ca", "https://a.test", "SPIFFE://a.test"}

var usages = [][]x509.ExtKeyUsage{
	nil,
	{x509.ExtKeyUsageServerAuth},
	{x509.ExtKeyUsageClientAuth},
	{x509.ExtKeyUsageCodeSigning},
	{x509.ExtKeyUsageAny},
	{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageCodeSigning},
}

var chainFaults = []chainFault{
	{"expired", ofAny(func(c *certPlan) { c.template.NotAfter = chainTime.Add(-time.Second) })},
	{"ends now", ofAny(func(c *certPlan) { c.template.NotAfter = chainTime })},
	{"begins now", ofAny(func(c *certPlan) { c.template.NotBefore = chainTime })},
	{"not yet valid", ofAny(func(c *certPlan) { c.template.NotBefore = chainTime.Add(time.Second) })},
	{"ends sooner", ofAny(func(c *certPlan) { c.template.NotAfter = chainTime.Add(5 * time.Minute) })},
	{"later", func(t *rapid.T, p *chainPlan) {
		p.now = p.now.Add(rapid.SampledFrom([]time.Duration{-3, 1, 2, 101}).Draw(t, "hours") * time.Hour)
	}},
	{"forged", ofAny(func(c *certPlan) { c.forged = true })},
	{"issuer's name is another's", ofAny(func(c *certPlan) { c.renamed = true })},
	{"critical extension", ofAny(func(c *certPlan) {
		c.template.ExtraExtensions = append(c.template.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
	})},
	{"extension", ofAny(func(c *certPlan) {
		c.template.ExtraExtensions = append(c.template.ExtraExtensions, pkix.Extension{Id: []int{1, 2, 3, 5}, Value: []byte{5, 0}})
	})},
	{"extended key usage", func(t *rapid.T, p *chainPlan) {
		p.any(t).template.ExtKeyUsage = rapid.SampledFrom(usages).Draw(t, "usages")
	}},
	{"unknown extended key usage", ofAny(func(c *certPlan) {
		c.template.ExtKeyUsage, c.template.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3, 6}}
	})},
	{"key usage", func(t *rapid.T, p *chainPlan) {
		p.any(t).template.KeyUsage = x509.KeyUsage(rapid.IntRange(0, 1<<9-1).Draw(t, "bits"))
	}},
	{"CA that is none", ofCA(func(c *certPlan) { c.template.IsCA = false })},
	{"CA without basic constraints", ofCA(func(c *certPlan) { c.template.IsCA, c.template.BasicConstraintsValid = false, false })},
	{"path length 0", ofCA(func(c *certPlan) { c.template.MaxPathLen, c.template.MaxPathLenZero = 0, true })},
	{"path length 1", ofCA(func(c *certPlan) { c.template.MaxPathLen = 1 })},
	{"CA of no name", ofCA(func(c *certPlan) { c.template.URIs = nil })},
	{"CA of another name", func(t *rapid.T, p *chainPlan) {
		p.ca(t, func(c *certPlan) {
			u, err := url.Parse(rapid.SampledFrom(caURIs).Draw(t, "name"))
			if err != nil {
				t.Fatal(err)
			}
			c.template.URIs = []*url.URL{u}
		})
	}},
	{"CA of two domains", ofCA(func(c *certPlan) {
		c.template.URIs = append(c.template.URIs, &url.URL{Scheme: "spiffe", Host: otherName})
	})},
	{"CA named as the one above", ofCA(func(c *certPlan) { c.template.Subject.CommonName = "CA 0" })},
	{"CA with the key of another", ofCA(func(c *certPlan) { c.key = 8 })},
	{"name constraints", func(t *rapid.T, p *chainPlan) {
		p.ca(t, func(c *certPlan) {
			names := rapid.SampledFrom([]string{"a.test", "A.TEST", "b.test", "x.a.test", "test", ".a.test", "st"}).Draw(t, "name")
			if rapid.Bool().Draw(t, "excluded") {
				c.template.ExcludedURIDomains = append(c.template.ExcludedURIDomains, names)
			} else {
				c.template.PermittedURIDomains = append(c.template.PermittedURIDomains, names)
			}
			c.template.PermittedDNSDomainsCritical = rapid.Bool().Draw(t, "critical")
		})
	}},
	{"root of the other domain", func(_ *rapid.T, p *chainPlan) { p.anchor = 2 }},
	{"root that nobody trusts", func(_ *rapid.T, p *chainPlan) { p.anchor = 3 }},

	{"leaf of an odd ID", func(t *rapid.T, p *chainPlan) {
		p.leaf.template.URIs = nil
		p.leaf.template.ExtraExtensions = append(p.leaf.template.ExtraExtensions, sanOf(t, rapid.SampledFrom(oddIDs).Draw(t, "ID")))
	}},
	{"leaf of two IDs", func(t *rapid.T, p *chainPlan) {
		p.leaf.template.URIs = nil
		p.leaf.template.ExtraExtensions = append(p.leaf.template.ExtraExtensions, sanOf(t, shop, rapid.SampledFrom(oddIDs).Draw(t, "ID")))
	}},
	{"leaf of no ID", ofLeaf(func(c *x509.Certificate) { c.URIs = nil })},
	{"leaf of no ID but a name", ofLeaf(func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"a.test"} })},
	{"leaf with other names", ofLeaf(func(c *x509.Certificate) { c.DNSNames, c.EmailAddresses = []string{"b.test"}, []string{"root@b.test"} })},
	{"leaf that is a CA", ofLeaf(func(c *x509.Certificate) { c.IsCA = true })},
	{"leaf without basic constraints", ofLeaf(func(c *x509.Certificate) { c.BasicConstraintsValid = false })},
	{"leaf with the key of its CA", func(_ *rapid.T, p *chainPlan) {
		if n := len(p.cas); n > 0 {
			p.leaf.key = p.cas[n-1].key
		}
	}},

	{"CA missing", func(t *rapid.T, p *chainPlan) {
		n := rapid.IntRange(1, 3).Draw(t, "which")
		p.present = append(p.present, func(w *chainWorld) {
			if n < len(w.chain) {
				w.chain = slices.Delete(slices.Clone(w.chain), n, n+1)
			}
		})
	}},
	{"CAs in another order", shown(func(w *chainWorld) { slices.Reverse(w.chain[1:]) })},
	{"CAs twice", shown(func(w *chainWorld) { w.chain = append(slices.Clone(w.chain), w.chain[1:]...) })},
	{"roots sent along", shown(func(w *chainWorld) { w.chain = append(slices.Clone(w.chain), w.roots[:]...) })},
	{"a CA as the leaf", shown(func(w *chainWorld) {
		if len(w.chain) > 1 {
			w.chain = slices.Clone(w.chain[1:])
		}
	})},
	{"CA certified by all roots", func(t *rapid.T, p *chainPlan) {
		before, lifetime := rapid.Bool().Draw(t, "before"), time.Duration(rapid.IntRange(0, 2).Draw(t, "hours"))*time.Hour+time.Minute
		p.present = append(p.present, func(w *chainWorld) { w.crossSign(before, lifetime) })
	}},
	{"many certificates", func(t *rapid.T, p *chainPlan) {
		n := rapid.IntRange(maxChain-1, maxChain+2).Draw(t, "how many")
		p.present = append(p.present, func(w *chainWorld) {
			w.chain = append(slices.Clone(w.chain), slices.Repeat([]*x509.Certificate{w.roots[3]}, max(0, n-len(w.chain)))...)
		})
	}},
	{"the other domain's roots are taken for this one's", shown(func(w *chainWorld) {
		w.bundles[domainName], w.bundles[otherName] = w.bundles[otherName], w.bundles[domainName]
	})},
	{"all roots in one bundle", shown(func(w *chainWorld) {
		b := w.bundles[domainName]
		b.roots = append(slices.Clone(b.roots), w.bundles[otherName].roots...)
		w.bundles[domainName] = b
	})},
	{"domain unknown", shown(func(w *chainWorld) { delete(w.bundles, domainName) })},
	{"no roots", shown(func(w *chainWorld) { w.bundles[domainName] = oracleBundle{} })},
	{"leaf among the roots", shown(func(w *chainWorld) { w.addRoot(w.path[0]) })},
	{"CA among the roots", shown(func(w *chainWorld) { w.addRoot(w.path[len(w.path)-1]) })},
	{"old root gone", shown(func(w *chainWorld) {
		b := w.bundles[domainName]
		b.roots = b.roots[:min(1, len(b.roots))]
		w.bundles[domainName] = b
	})},
	{"ID blocked", shown(func(w *chainWorld) { w.endIDs(map[string]time.Time{shop: {}, "spiffe://b.test/x": {}}) })},
	{"ID revoked", func(t *rapid.T, p *chainPlan) {
		at := chainTime.Add(-time.Minute + time.Duration(rapid.IntRange(-1, 1).Draw(t, "seconds"))*time.Second) // around the leaf's beginning
		p.present = append(p.present, func(w *chainWorld) { w.endIDs(map[string]time.Time{shop: at}) })
	}},
	{"another ID revoked", shown(func(w *chainWorld) { w.endIDs(map[string]time.Time{shop + "x": {}}) })},
	{"key revoked", func(t *rapid.T, p *chainPlan) {
		n := rapid.IntRange(0, 7).Draw(t, "which")
		p.present = append(p.present, func(w *chainWorld) {
			all := append(slices.Clone(w.path), w.roots[:]...)
			key := Fingerprint(all[n%len(all)])
			for td, b := range w.bundles {
				b.revoked = map[[32]byte]struct{}{key: {}}
				w.bundles[td] = b
			}
		})
	}},
}

func (w *chainWorld) endIDs(over map[string]time.Time) {
	for td, b := range w.bundles {
		b.over = over
		w.bundles[td] = b
	}
}

func sanOf(t *rapid.T, uris ...string) pkix.Extension {
	var names []asn1.RawValue
	for _, u := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
	}
	der, err := asn1.Marshal(names)
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: oidSubjectAltName, Critical: true, Value: der}
}

// make builds the world. ok is false when a certificate can't be read by crypto/x509: no handshake would come to the verifier.
func (p *chainPlan) make(t *rapid.T) (w *chainWorld, ok bool) {
	w = &chainWorld{t: t, plan: p}
	base := chainPlan{now: chainTime}
	for i, name := range []string{domainName, domainName, otherName, domainName} {
		w.rootKey[i] = chainKeys()[i]
		template := base.caTemplate(fmt.Sprintf("root %d", i), name)
		if w.roots[i], ok = w.sign(&certPlan{template: template, key: i}, &template, w.rootKey[i]); !ok {
			t.Fatal("a root can't be made")
		}
	}
	parent, key := w.roots[p.anchor], w.rootKey[p.anchor]
	for _, c := range append(slices.Clone(p.cas), p.leaf) {
		made, ok := w.sign(c, parent, key)
		if !ok {
			return nil, false
		}
		w.path = slices.Insert(w.path, 0, made)
		parent, key = made, chainKeys()[c.key]
	}
	w.chain = slices.Clone(w.path)
	w.bundles = map[string]oracleBundle{
		domainName: {roots: []*x509.Certificate{w.roots[0], w.roots[1]}}, otherName: {roots: []*x509.Certificate{w.roots[2]}},
	}
	for _, change := range p.present {
		change(w)
	}
	return w, true
}

func (w *chainWorld) sign(c *certPlan, parent *x509.Certificate, key *ecdsa.PrivateKey) (*x509.Certificate, bool) {
	template := c.template
	template.SerialNumber = big.NewInt(int64(c.key) + 1)
	if !template.IsCA { // crypto/x509 makes no such certificate
		template.MaxPathLen, template.MaxPathLenZero = -1, false
	}
	issuer := *parent
	issuer.PublicKey = nil // else crypto/x509 would not sign with a key that is not the parent's
	if c.forged {
		key = chainKeys()[23]
	}
	if c.renamed {
		issuer.RawSubject, issuer.Subject = nil, pkix.Name{CommonName: "somebody"}
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &issuer, chainKeys()[c.key].Public(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	return made, err == nil
}

// crossSign shows the topmost CA once more for each root that has not signed it, before the one that is there or after it.
func (w *chainWorld) crossSign(before bool, lifetime time.Duration) {
	if len(w.plan.cas) == 0 {
		return
	}
	var more []*x509.Certificate
	for i, root := range w.roots {
		again := *w.plan.cas[0]
		again.forged, again.renamed = false, false
		again.template.NotAfter = chainTime.Add(lifetime)
		if made, ok := w.sign(&again, root, w.rootKey[i]); ok && i != w.plan.anchor {
			more = append(more, made)
		}
	}
	at := len(w.chain)
	if before {
		at = min(1, at)
	}
	w.chain = slices.Insert(slices.Clone(w.chain), at, more...)
}

func (w *chainWorld) addRoot(c *x509.Certificate) {
	b := w.bundles[domainName]
	b.roots = append(slices.Clone(b.roots), c)
	w.bundles[domainName] = b
}

func (w *chainWorld) trusted() *Bundles {
	b := NewBundles()
	for td, o := range w.bundles {
		over := map[spiffeid.ID]time.Time{}
		for id, at := range o.over {
			over[spiffeid.RequireFromString(id)] = at
		}
		b.Set(spiffeid.RequireTrustDomainFromString(td), Bundle{Authorities: o.roots, Revoked: o.revoked, RevokedIDs: over})
	}
	return b
}

// The verifier and the oracle say the same of every chain: who passes, as whom, until when; and of those who don't, why, where the oracle
// can tell. Whoever passes here passes go-spiffe.
func TestVerifyAgainstOracle(t *testing.T) {
	seen := map[Reason]int{}
	for range 20 { // of 100 each, as a rule
		rapid.Check(t, func(rt *rapid.T) {
			p := drawChain(rt)
			w, ok := p.make(rt)
			if !ok {
				return
			}
			want := oracle(w.bundles, w.chain, p.now)
			peer, err := w.trusted().Verify(w.chain, p.now)
			if (err == nil) != want.passes {
				rt.Fatalf("verifier: %v; oracle: %+v", err, want)
			}
			var reason Reason
			if err != nil {
				reason = reasonOf(t, err)
			}
			seen[reason]++
			agrees(rt, w.trusted().Explain(w.chain, p.now), peer, reason)
			switch {
			case want.passes && (peer.ID.String() != want.id || !peer.NotAfter.Equal(want.until) || peer.Key != Fingerprint(w.chain[0])):
				rt.Fatalf("verifier: %+v; oracle: %+v", peer, want)
			case want.passes:
				w.passesGoSPIFFE(rt)
			case len(w.chain) > maxChain && reason == BadChain:
			case !want.svid && reason != BadSVID, want.svid && !want.known && reason != UnknownDomain, // each alone
				want.unburnt && reason != Revoked, !want.timely && reason == Revoked:
				rt.Fatalf("refused for %q (%v); oracle: %+v", reason, err, want)
			}
		})
	}
	total := 0
	for _, n := range seen {
		total += n
	}
	// The draw must come to everything, or it shows nothing.
	for r := range NotAllowed {
		if want := total / 500; seen[r] <= want || r == 0 && seen[r] < total/8 {
			t.Errorf("%d of %d chains came to %q", seen[r], total, r)
		}
	}
	t.Logf("%d chains: %v", total, seen)
}

// agrees: what is explained is what was decided.
func agrees(rt *rapid.T, e Explanation, peer Peer, reason Reason) {
	broken := slices.ContainsFunc(e.Steps, func(s Step) bool { return !s.OK })
	if e.Reason != reason || e.Peer != peer || broken != (reason != 0) {
		rt.Fatalf("explained as %q, %+v; verified as %q, %+v: %+v", e.Reason, e.Peer, reason, peer, e.Steps)
	}
}

// passesGoSPIFFE: ours is the narrower gate. go-spiffe verifies as of the machine's clock, unless it is told; it can be told since 2.1.
func (w *chainWorld) passesGoSPIFFE(rt *rapid.T) {
	set := x509bundle.NewSet()
	for td, b := range w.bundles {
		set.Add(x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(td), b.roots))
	}
	if _, _, err := x509svid.Verify(w.chain, set, x509svid.WithTime(w.plan.now)); err != nil {
		rt.Fatalf("go-spiffe refuses: %v", err)
	}
}
