package trust

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const shop = "spiffe://a.test/ns/shop/sa/checkout"

// reasonOf returns why err refuses: 0 when it doesn't.
func reasonOf(t *testing.T, err error) Reason {
	t.Helper()
	if err == nil {
		return 0
	}
	refused, ok := errors.AsType[*VerifyError](err)
	if !ok {
		t.Fatalf("error of type %T: %v", err, err)
	}
	return refused.Reason
}

func TestVerify(t *testing.T) {
	a, b := rootOf(t, domainA), rootOf(t, domainB)
	// constrained is an issuing CA as Authority makes it: name constraints let more through than one would think.
	constrained := func(root *testCA, td string) *testCA {
		c := caTemplate(t, td)
		c.MaxPathLenZero, c.PermittedURIDomains, c.PermittedDNSDomainsCritical = true, []string{td}, true
		return root.sub(c)
	}
	issuingA := constrained(a, "a.test")
	leaf := func(ca *testCA, change func(*x509.Certificate), uris ...string) []*x509.Certificate {
		template := leafTemplate(t, uris...)
		if change != nil {
			change(template)
		}
		chain, _ := ca.issue(template)
		return chain
	}
	sanOf := func(uris ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{rawSAN(t, uris...)} }
	}
	foreignURI := caTemplate(t, "b.test") // signed by a's root: a mistake, or a's key stolen for a day
	noURI := caTemplate(t, "a.test")
	noURI.URIs = nil
	expiredCA := caTemplate(t, "a.test")
	expiredCA.NotAfter = time.Now().Add(-time.Minute)
	notCA := caTemplate(t, "a.test")
	notCA.IsCA, notCA.KeyUsage = false, x509.KeyUsageDigitalSignature
	impostor := newRoot(t, caTemplate(t, "a.test")) // the right name, another key
	for _, test := range []struct {
		name  string
		chain []*x509.Certificate
		want  Reason
		part  string // of the error
	}{
		{name: "direct", chain: leaf(a, nil, shop)},
		{name: "issuing CA", chain: leaf(issuingA, nil, shop)},
		{name: "issuing CA without URI", chain: leaf(a.sub(noURI), nil, shop)},
		{name: "two issuing CAs", chain: leaf(a.sub(caTemplate(t, "a.test")).sub(caTemplate(t, "a.test")), nil, shop)},
		{name: "other domain, own root", chain: leaf(b, nil, "spiffe://b.test/isthmus/control")},
		{name: "no extended key usage", chain: leaf(a, func(c *x509.Certificate) { c.ExtKeyUsage = nil }, shop)},
		{name: "with a DNS name", chain: leaf(a, func(c *x509.Certificate) { c.DNSNames = []string{"checkout.shop.svc"} }, shop)},
		{name: "root sent along", chain: append(leaf(issuingA, nil, shop), a.cert)},
		{name: "superfluous CA sent along", chain: append(leaf(issuingA, nil, shop), b.cert)},

		{name: "no certificate", want: BadSVID, part: "no certificate"},
		{name: "no URI", chain: leaf(a, nil), want: BadSVID, part: "no URI SAN"},
		{name: "DNS name only", chain: leaf(a, func(c *x509.Certificate) { c.DNSNames = []string{"a.test"} }), want: BadSVID},
		{name: "two URIs", chain: leaf(a, nil, shop, "spiffe://a.test/ns/shop/sa/cart"), want: BadSVID, part: "2 URI SANs"},
		{name: "the same URI twice", chain: leaf(a, nil, shop, shop), want: BadSVID, part: "2 URI SANs"},
		{name: "a SPIFFE ID and another URI", chain: leaf(a, nil, shop, "https://a.test/"), want: BadSVID},
		{name: "not a SPIFFE ID", chain: leaf(a, nil, "https://a.test/ns/shop/sa/checkout"), want: BadSVID},
		{name: "a domain, no member", chain: leaf(a, nil, "spiffe://a.test"), want: BadSVID, part: "no path"},
		{name: "path of nothing", chain: leaf(a, sanOf("spiffe://a.test/")), want: BadSVID},
		{name: "too long", chain: leaf(a, nil, "spiffe://a.test/"+strings.Repeat("x", maxID)), want: BadSVID, part: "longer than"},
		{name: "CA as leaf", chain: leaf(a, func(c *x509.Certificate) { c.IsCA = true }, shop), want: BadSVID, part: "a CA certificate"},
		{name: "may sign certificates", chain: leaf(a, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, shop), want: BadSVID},
		{name: "may sign CRLs", chain: leaf(a, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, shop), want: BadSVID},
		{name: "no digitalSignature", chain: leaf(a, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, shop), want: BadSVID},
		{name: "no key usage", chain: leaf(a, func(c *x509.Certificate) { c.KeyUsage = 0 }, shop), want: BadSVID},
		{name: "server only", chain: leaf(a, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, shop), want: BadSVID},
		{name: "for code signing", chain: leaf(a, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, shop), want: BadSVID},

		// What crypto/x509 lets through an issuing CA that is permitted a.test.
		{name: "sub-domain", chain: leaf(issuingA, nil, "spiffe://x.a.test/ns/shop/sa/checkout"), want: UnknownDomain},
		{name: "upper case", chain: leaf(issuingA, nil, "spiffe://A.TEST/ns/shop/sa/checkout"), want: BadSVID},
		{name: "port", chain: leaf(issuingA, nil, "spiffe://a.test:80/ns/shop/sa/checkout"), want: BadSVID},
		{name: "user", chain: leaf(issuingA, nil, "spiffe://root@a.test/ns/shop/sa/checkout"), want: BadSVID},
		{name: "query", chain: leaf(issuingA, nil, shop+"?x=y"), want: BadSVID},
		{name: "fragment", chain: leaf(issuingA, nil, shop+"#x"), want: BadSVID},
		{name: "empty fragment", chain: leaf(issuingA, sanOf(shop+"#")), want: BadSVID, part: "normal form"},
		{name: "empty query", chain: leaf(issuingA, sanOf(shop+"?")), want: BadSVID},
		{name: "upper-case scheme", chain: leaf(issuingA, sanOf("SPIFFE"+strings.TrimPrefix(shop, "spiffe"))), want: BadSVID, part: "normal form"},
		{name: "percent", chain: leaf(issuingA, nil, "spiffe://a.test/ns/shop/sa/check%6fut"), want: BadSVID},
		{name: "dots", chain: leaf(issuingA, nil, "spiffe://a.test/ns/shop/sa/cart/../checkout"), want: BadSVID},
		{name: "double slash", chain: leaf(issuingA, nil, "spiffe://a.test/ns//shop"), want: BadSVID},
		{name: "trailing slash", chain: leaf(issuingA, nil, shop+"/"), want: BadSVID},

		{name: "unknown domain", chain: leaf(rootOf(t, spiffeid.RequireTrustDomainFromString("c.test")), nil, "spiffe://c.test/x"), want: UnknownDomain},
		{name: "foreign root, right name", chain: leaf(impostor, nil, shop), want: BadChain},
		{name: "foreign root sent along", chain: append(leaf(impostor, nil, shop), impostor.cert), want: BadChain},
		{name: "root of another trusted domain", chain: leaf(b, nil, shop), want: BadChain},
		{name: "issuing CA of another trusted domain", chain: leaf(constrained(b, "a.test"), nil, shop), want: BadChain},
		{name: "issuing CA of another domain", chain: leaf(constrained(b, "b.test"), nil, shop), want: BadChain},
		{name: "issuing CA named for another domain", chain: leaf(a.sub(foreignURI), nil, shop), want: BadChain, part: "authority of"},
		{name: "outside of the name constraint", chain: leaf(constrained(a, "x.test"), nil, shop), want: BadChain},
		{name: "issuing CA missing", chain: leaf(issuingA, nil, shop)[:1], want: BadChain},
		{name: "path length", chain: leaf(issuingA.sub(caTemplate(t, "a.test")), nil, shop), want: BadChain},
		{name: "issued by an SVID", chain: leaf(a.sub(notCA), nil, shop), want: BadChain},
		{name: "too many certificates", chain: append(leaf(issuingA, nil, shop), slices.Repeat([]*x509.Certificate{b.cert}, maxChain)...), want: BadChain},
		{name: "unknown critical extension", chain: leaf(a, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}, shop), want: BadChain},

		{name: "expired", chain: leaf(a, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, shop), want: Expired},
		{name: "not yet valid", chain: leaf(a, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, shop), want: Expired},
		{name: "issuing CA expired", chain: leaf(a.sub(expiredCA), nil, shop), want: Expired},
	} {
		t.Run(test.name, func(t *testing.T) {
			bundles := bundlesOf(map[spiffeid.TrustDomain]*testCA{domainA: a, domainB: b})
			p, err := bundles.Verify(test.chain, time.Now())
			if got := reasonOf(t, err); got != test.want {
				t.Fatalf("refused for %q (%v), want %q", got, err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), test.part) {
				t.Errorf("error %q does not say %q", err, test.part)
			}
			if test.want != 0 {
				return
			}
			if want := test.chain[0].URIs[0].String(); p.ID.String() != want {
				t.Errorf("peer %s, want %s", p.ID, want)
			}
			if p.Key != Fingerprint(test.chain[0]) || !p.NotAfter.Equal(test.chain[0].NotAfter) {
				t.Errorf("peer %+v does not match its certificate", p)
			}
			// Whoever passes here passes go-spiffe too: ours is the narrower gate.
			set := x509bundle.NewSet(x509bundle.FromX509Authorities(domainA, []*x509.Certificate{a.cert}), x509bundle.FromX509Authorities(domainB, []*x509.Certificate{b.cert}))
			if _, _, err := x509svid.Verify(test.chain, set); err != nil {
				t.Errorf("go-spiffe refuses: %v", err)
			}
		})
	}
}

// A weak key is refused whoever signed for it.
func TestVerifyWeakKey(t *testing.T) {
	a := rootOf(t, domainA)
	key, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, leafTemplate(t, shop), a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	_, err = bundlesOf(map[spiffeid.TrustDomain]*testCA{domainA: a}).Verify([]*x509.Certificate{leaf}, time.Now())
	if got := reasonOf(t, err); got != BadSVID {
		t.Errorf("refused for %q, want %q", got, BadSVID)
	}
}

func TestVerifyRevoked(t *testing.T) {
	a := rootOf(t, domainA)
	issuing, other := a.sub(caTemplate(t, "a.test")), a.sub(caTemplate(t, "a.test"))
	svid := issuing.svid(spiffeid.RequireFromString(shop))
	for _, test := range []struct {
		name    string
		revoked *x509.Certificate
		want    Reason
	}{
		{"SVID", svid.Certificates[0], Revoked},
		{"issuing CA", issuing.cert, Revoked},
		{"root", a.cert, Revoked},
		{"another issuing CA", other.cert, 0},
	} {
		b := NewBundles()
		bundle := a.bundle()
		bundle.Revoked = map[[32]byte]struct{}{Fingerprint(test.revoked): {}}
		b.Set(domainA, bundle)
		_, err := b.Verify(svid.Certificates, time.Now())
		if got := reasonOf(t, err); got != test.want {
			t.Errorf("%s revoked: refused for %q (%v), want %q", test.name, got, err, test.want)
		}
	}
}

func TestVerifyRevokedID(t *testing.T) {
	a, b := rootOf(t, domainA), rootOf(t, domainB)
	id := spiffeid.RequireFromString(shop)
	svid := a.svid(id)
	begun := svid.Certificates[0].NotBefore
	for _, test := range []struct {
		name    string
		revoked map[spiffeid.ID]time.Time
		want    Reason
	}{
		{"begun before", map[spiffeid.ID]time.Time{id: begun.Add(time.Second)}, Revoked},
		{"begun then", map[spiffeid.ID]time.Time{id: begun}, Revoked},
		{"begun after", map[spiffeid.ID]time.Time{id: begun.Add(-time.Second)}, 0},
		{"blocked", map[spiffeid.ID]time.Time{id: {}}, Revoked},
		{"another ID", map[spiffeid.ID]time.Time{spiffeid.RequireFromPath(domainA, "/ns/shop"): {}}, 0},
		{"the same path in another domain", map[spiffeid.ID]time.Time{spiffeid.RequireFromPath(domainB, id.Path()): {}}, 0},
	} {
		for of, ca := range map[spiffeid.TrustDomain]*testCA{domainA: a, domainB: b} {
			bundles := bundlesOf(map[spiffeid.TrustDomain]*testCA{domainA: a, domainB: b})
			bundle := ca.bundle()
			bundle.RevokedIDs = test.revoked
			bundles.Set(of, bundle)
			want := test.want
			if of != domainA { // what another domain revokes is not this one's
				want = 0
			}
			_, err := bundles.Verify(svid.Certificates, time.Now())
			if got := reasonOf(t, err); got != want {
				t.Errorf("%s, revoked by %s: refused for %q (%v), want %q", test.name, of, got, err, want)
			}
		}
	}
}

// A revoked key is out, not the way round it: the same issuing key certified by two roots.
func TestVerifyOtherPath(t *testing.T) {
	oldRoot, newRoot := rootOf(t, domainA), rootOf(t, domainA)
	issuing := oldRoot.sub(caTemplate(t, "a.test"))
	again := caTemplate(t, "a.test")
	again.NotAfter = time.Now().Add(30 * time.Minute)
	cross := newRoot.create(again, newRoot.cert, issuing.key)
	chain, _ := issuing.issue(leafTemplate(t, shop))
	chain = append(chain, cross)
	b := NewBundles()
	b.Set(domainA, Bundle{Authorities: []*x509.Certificate{oldRoot.cert, newRoot.cert}})
	p, err := b.Verify(chain, time.Now())
	if err != nil || !p.NotAfter.Equal(chain[0].NotAfter) {
		t.Fatalf("both roots: %v, until %v, want the SVID's own end", err, p.NotAfter)
	}
	b.Set(domainA, Bundle{
		Authorities: []*x509.Certificate{oldRoot.cert, newRoot.cert},
		Revoked:     map[[32]byte]struct{}{Fingerprint(oldRoot.cert): {}},
	})
	p, err = b.Verify(chain, time.Now())
	if err != nil || !p.NotAfter.Equal(cross.NotAfter) {
		t.Fatalf("old root revoked: %v, until %v, want the cross certificate's end %v", err, p.NotAfter, cross.NotAfter)
	}
}

// Two domains below one root: what a CA signs that says whose it is passes, and only for that domain; what one signs that doesn't passes for
// neither, from the moment that the root is shared.
func TestVerifySharedRoot(t *testing.T) {
	template := caTemplate(t, "a.test")
	template.URIs = nil
	company := newRoot(t, template)
	unnamed := company.sub(template)
	ofA, ofB := company.sub(caTemplate(t, "a.test")), company.sub(caTemplate(t, "b.test"))
	b := NewBundles()
	b.Set(domainA, company.bundle())
	reason := func(ca *testCA, id spiffeid.ID) Reason {
		_, err := b.Verify(ca.svid(id).Certificates, time.Now())
		return reasonOf(t, err)
	}
	for _, ca := range []*testCA{company, unnamed, ofA, ofA.sub(template)} {
		if got := reason(ca, gatewayA); got != 0 {
			t.Errorf("alone: %q", got)
		}
	}
	b.Set(domainB, company.bundle())
	for _, test := range []struct {
		name string
		ca   *testCA
		id   spiffeid.ID
		want Reason
	}{
		{"its own CA", ofA, gatewayA, 0},
		{"below its own CA", ofA.sub(template), gatewayA, 0},
		{"the other's own CA", ofB, gatewayB, 0},
		{"a CA of the other", ofB, gatewayA, BadChain},
		{"below a CA of the other", ofB.sub(template), gatewayA, BadChain},
		{"a CA of nobody", unnamed, gatewayA, BadChain},
		{"a CA of nobody, for the other", unnamed, gatewayB, BadChain},
		{"the root itself", company, gatewayA, BadChain},
	} {
		if got := reason(test.ca, test.id); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	b.Remove(domainB)
	if got := reason(unnamed, gatewayA); got != 0 {
		t.Errorf("alone again: %q", got)
	}
}

// A trust anchor that is the SVID itself is not a chain.
func TestVerifyLeafAsRoot(t *testing.T) {
	svid := rootOf(t, domainA).svid(spiffeid.RequireFromString(shop))
	b := NewBundles()
	b.Set(domainA, Bundle{Authorities: svid.Certificates[:1]})
	_, err := b.Verify(svid.Certificates[:1], time.Now())
	if got := reasonOf(t, err); got != BadChain {
		t.Errorf("refused for %q, want %q", got, BadChain)
	}
}

func TestVerifyNobody(t *testing.T) {
	svid := rootOf(t, domainA).svid(spiffeid.RequireFromString(shop))
	for name, b := range map[string]*Bundles{"nil": nil, "zero": new(Bundles), "no domain": NewBundles()} {
		_, err := b.Verify(svid.Certificates, time.Now())
		if got := reasonOf(t, err); got != UnknownDomain {
			t.Errorf("%s: refused for %q, want %q", name, got, UnknownDomain)
		}
	}
	b := NewBundles()
	b.Set(domainA, Bundle{})
	_, err := b.Verify(svid.Certificates, time.Now())
	if got := reasonOf(t, err); got != BadChain {
		t.Errorf("no authorities: refused for %q, want %q", got, BadChain)
	}
}

func TestReasonWords(t *testing.T) {
	seen := map[string]bool{}
	for r := UnknownDomain; r <= NotAllowed; r++ {
		if s := r.String(); seen[s] || strings.HasPrefix(s, "reason_") {
			t.Errorf("reason %d is %q", r, s)
		} else {
			seen[s] = true
		}
	}
}

// Whatever certificate parses: no panic, and an ID that is read is the one URI SAN, byte for byte.
func FuzzInspect(f *testing.F) {
	a := rootOf(f, domainA)
	f.Add(a.svid(gatewayA).Certificates[0].Raw)
	f.Add(a.cert.Raw)
	odd := leafTemplate(f)
	odd.ExtraExtensions = []pkix.Extension{rawSAN(f, shop+"#")}
	chain, _ := a.issue(odd)
	f.Add(chain[0].Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		p, err := inspect([]*x509.Certificate{cert})
		if err != nil {
			if reasonOf(t, err) != BadSVID {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		id, err := x509svid.IDFromCert(cert)
		if err != nil || id != p.ID || cert.IsCA || !strings.Contains(string(der), p.ID.String()) {
			t.Fatalf("read %s; go-spiffe: %s, %v", p.ID, id, err)
		}
	})
}

// Whatever a request says: no panic, and a key that is read is one we certify.
func FuzzReadRequest(f *testing.F) {
	_, csr, err := NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Add(csr[:len(csr)/2])
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----"))
	f.Fuzz(func(t *testing.T, der []byte) {
		key, err := readRequest(der)
		if err == nil && (len(der) > maxRequest || key.Params().BitSize != 256) {
			t.Fatalf("%d bytes, a key of %d bits", len(der), key.Params().BitSize)
		}
	})
}
