package federation

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"maps"
	"math/big"
	"net/netip"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/isthmus-mesh/isthmus/api/federation/v1"
	"github.com/isthmus-mesh/isthmus/topology"
	"github.com/isthmus-mesh/isthmus/trust"
)

// NewTestRoot makes an X.509 root of a domain.
func NewTestRoot(tb testing.TB, td spiffeid.TrustDomain, notAfter time.Time) *x509.Certificate {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: notAfter.Add(-90 * 24 * time.Hour), NotAfter: notAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{td.ID().URL()},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// ShardOf is shardOf.
func ShardOf(namespace string) int { return int(shardOf(namespace)) }

// author writes records as a peer would, or as it should not.
type author struct {
	t       testing.TB
	cluster topology.ClusterName
	domain  spiffeid.TrustDomain
	root    ed25519.PrivateKey
	signing ed25519.PrivateKey
	epoch   uint64
	roots   []*x509.Certificate
}

func newAuthor(tb testing.TB, name string) *author {
	tb.Helper()
	cluster, err := topology.ParseClusterName(name)
	if err != nil {
		tb.Fatal(err)
	}
	a := &author{t: tb, cluster: cluster, domain: spiffeid.RequireTrustDomainFromString(name + ".example.org"), epoch: 1}
	a.root, a.signing = newEd25519(tb), newEd25519(tb)
	a.roots = []*x509.Certificate{NewTestRoot(tb, a.domain, epochStart.Add(90*24*time.Hour))}
	return a
}

// epochStart is now in tests that need no clock.
var epochStart = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func newEd25519(tb testing.TB) ed25519.PrivateKey {
	tb.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func (a *author) spec() PeerSpec {
	return PeerSpec{a.cluster, a.domain, FingerprintOf(public(a.root))}
}

// nextEpoch changes the signing key.
func (a *author) nextEpoch() *record {
	a.epoch++
	a.signing = newEd25519(a.t)
	return a.memberRoot(nil)
}

func (a *author) memberRoot(change func(*memberRoot)) *record {
	m := memberRoot{
		domain: a.domain, epoch: a.epoch, signingKeys: []ed25519.PublicKey{public(a.signing)},
		issued: epochStart, notAfter: epochStart.Add(RootLifetime), rootKey: public(a.root),
	}
	if change != nil {
		change(&m)
	}
	return a.sealed(m.seal(a.root))
}

func (a *author) sealed(r *record, err error) *record {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
	return r
}

// told is a Head and its parts, as of a version that each of them names.
type told struct {
	head  *record
	parts []*record
	seq   uint64
	epoch uint64
}

func (d told) all() []*record { return append([]*record{d.head}, d.parts...) }

// seqAt is the number of a Head that is issued then.
func seqAt(at time.Time) uint64 { return uint64(at.UnixMilli()) }

// tell writes a Head of that version, issued at.
func (a *author) tell(version int, at time.Time, change func(*head)) told {
	a.t.Helper()
	bundle := a.sealed(encodeBundle(a.domain, trust.Bundle{Authorities: a.roots}, 1))
	server := spiffeid.RequireFromPathf(a.domain, "/ns/shop/sa/web")
	gateways := a.sealed(encodeGateways(a.domain, []Gateway{{
		ID: "g", Identity: spiffeid.RequireFromPathf(a.domain, "/isthmus/gateway/g"), Capacity: uint32(version),
	}}, []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}))
	var exports []Export
	for _, ns := range []string{"shop", "pay", "search"} {
		name, err := topology.NewServiceName(ns, "web")
		if err != nil {
			a.t.Fatal(err)
		}
		exports = append(exports, Export{
			Name: name, Created: epochStart, Type: ClusterSetIP, Servers: []spiffeid.ID{server},
			Capacity: []ZoneCapacity{{Ready: uint32(version)}},
		})
	}
	shards, err := encodeCatalog(a.domain, exports)
	if err != nil {
		a.t.Fatal(err)
	}
	d := told{parts: []*record{bundle, gateways}, seq: seqAt(at), epoch: a.epoch}
	h := head{
		domain: a.domain, cluster: a.cluster, region: "here", epoch: a.epoch, seq: d.seq, issued: at, expires: at.Add(HeadLifetime),
		refs: []ref{{RecordTrustBundle, 0, bundle.hash}, {RecordGatewaySet, 0, gateways.hash}},
	}
	for _, index := range slices.Sorted(maps.Keys(shards)) {
		d.parts = append(d.parts, shards[index])
		h.refs = append(h.refs, ref{RecordCatalogShard, index, shards[index].hash})
	}
	if change != nil {
		change(&h)
	}
	d.head, d.seq = a.sealed(h.seal(a.signing)), h.seq
	return d
}

// wire takes a record over the wire: what a receiver has is what it read.
func wire(tb testing.TB, r *record) *record {
	tb.Helper()
	o, err := open(r.raw)
	if err != nil {
		tb.Fatal(err)
	}
	return o
}

// reasonOf returns why err refuses; "" for nil, "duplicate" for errDuplicate.
func reasonOf(tb testing.TB, err error) Reason {
	tb.Helper()
	if err == nil {
		return ""
	}
	if errors.Is(err, errDuplicate) {
		return "duplicate"
	}
	r, ok := errors.AsType[*Refusal](err)
	if !ok {
		tb.Fatalf("%v is no refusal", err)
	}
	return r.Reason
}

// versionOf returns the version that a view is of; it fails when its parts are of several.
func versionOf(tb testing.TB, v *View) int {
	tb.Helper()
	if v.Freshness == Waiting {
		return 0
	}
	if len(v.Gateways) != 1 || len(v.Exports) != 3 || len(v.Bundle.Authorities) != 1 {
		tb.Fatalf("%d gateways, %d exports, %d roots", len(v.Gateways), len(v.Exports), len(v.Bundle.Authorities))
	}
	version := int(v.Gateways[0].Capacity)
	for _, e := range v.Exports {
		if e.Ready() != version {
			tb.Fatalf("gateways of version %d, %s of %d", version, e.Name, e.Ready())
		}
	}
	return version
}

// Author is an author for tests from outside the package: what it returns are envelopes.
type Author struct{ a *author }

// NewAuthor returns an author of the domain <name>.example.org.
func NewAuthor(tb testing.TB, name string) Author {
	tb.Helper()
	return Author{newAuthor(tb, name)}
}

// Spec pins the author.
func (a Author) Spec() PeerSpec { return a.a.spec() }

// Root returns a MemberRoot that is issued now.
func (a Author) Root() []byte {
	return a.a.memberRoot(func(m *memberRoot) { m.issued, m.notAfter = time.Now(), time.Now().Add(RootLifetime) }).raw
}

// Tell returns a Head of that version, issued at, and its parts.
func (a Author) Tell(version int, at time.Time) [][]byte {
	var out [][]byte
	for _, r := range a.a.tell(version, at, nil).all() {
		out = append(out, r.raw)
	}
	return out
}

// Forge returns an envelope with the same content and signatures that don't fit.
func Forge(tb testing.TB, raw []byte) []byte {
	tb.Helper()
	e := new(federationv1.Envelope)
	if err := proto.Unmarshal(raw, e); err != nil {
		tb.Fatal(err)
	}
	for _, s := range e.Signatures {
		s.Signature[0] ^= 1
	}
	forged, err := proto.Marshal(e)
	if err != nil {
		tb.Fatal(err)
	}
	return forged
}

// EncodeWant returns a Want for those domains, said to be held up to (epoch, seq).
func EncodeWant(tb testing.TB, epoch, seq uint64, domains ...spiffeid.TrustDomain) []byte {
	tb.Helper()
	w := want{have: make(map[spiffeid.TrustDomain]mark)}
	for _, td := range domains {
		w.have[td] = mark{epoch, seq}
	}
	b, err := w.encode()
	if err != nil {
		tb.Fatal(err)
	}
	return b
}
