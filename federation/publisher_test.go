package federation

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func newTestPublisher(t *testing.T, a *author, keys *Keys, dir string) *publisher {
	t.Helper()
	s, err := openStore(dir, discard)
	if err != nil {
		t.Fatal(err)
	}
	p := newPublisher(MemberConfig{Cluster: a.cluster, Domain: a.domain, Keys: keys, Log: slog.New(slog.DiscardHandler), Now: time.Now}, s)
	content, err := newOwnContent(a.domain, Own{Roots: a.roots})
	if err != nil {
		t.Fatal(err)
	}
	p.set(content, epochStart)
	return p
}

func publishAt(t *testing.T, p *publisher, wall time.Time) (head, []addressed) {
	t.Helper()
	out, err := p.publish(wall)
	if err != nil {
		t.Fatal(err)
	}
	h, err := decodeHead(wire(t, p.head))
	if err != nil {
		t.Fatal(err)
	}
	return h, out
}

func TestPublisherNumbers(t *testing.T) {
	a := newAuthor(t, "eu")
	keys := openTestKeys(t, t.TempDir())
	dir := t.TempDir()
	p := newTestPublisher(t, a, keys, dir)
	now := epochStart
	first, out := publishAt(t, p, now)
	if first.seq != uint64(now.UnixMilli()) || len(out) != 3 || out[0].record.kind != RecordMemberRoot || out[1].record.kind != RecordHead {
		t.Errorf("number %d, %d records", first.seq, len(out))
	}
	if out[1].subject != "fed.v1.eu_example_org.head" || out[2].subject != "fed.v1.eu_example_org.bundle" {
		t.Errorf("under %q and %q", out[1].subject, out[2].subject)
	}
	second, out := publishAt(t, p, now) // the same millisecond
	if second.seq != first.seq+1 || len(out) != 1 || !slices.Equal(second.previous, p.saved.Head) && len(second.previous) != 32 {
		t.Errorf("number %d after %d, %d records", second.seq, first.seq, len(out))
	}
	if back, _ := publishAt(t, p, now.Add(-time.Minute)); back.seq != second.seq+1 {
		t.Errorf("number %d after %d, with the clock put back", back.seq, second.seq)
	}
	last := p.saved
	// A restart goes on where it stopped, with disk or without.
	p = newTestPublisher(t, a, keys, dir)
	if p.saved.Seq != last.Seq {
		t.Fatalf("number %d on disk, want %d", p.saved.Seq, last.Seq)
	}
	if again, _ := publishAt(t, p, now.Add(-time.Minute)); again.seq != last.Seq+1 || string(again.previous) != string(last.Head) {
		t.Errorf("number %d after a restart, want %d", again.seq, last.Seq+1)
	}
	if p.saved.BundleSequence != last.BundleSequence {
		t.Error("the same bundle has another sequence")
	}
	lost := newTestPublisher(t, a, keys, "")
	if again, _ := publishAt(t, lost, now.Add(time.Second)); again.seq <= last.Seq || lost.saved.BundleSequence <= last.BundleSequence {
		t.Errorf("number %d without disk, after %d", again.seq, last.Seq)
	}
}

func TestPublisherBundle(t *testing.T) {
	a := newAuthor(t, "eu")
	p := newTestPublisher(t, a, openTestKeys(t, t.TempDir()), "")
	publishAt(t, p, epochStart)
	before := p.saved.BundleSequence
	content, err := newOwnContent(a.domain, Own{Roots: append([]*x509.Certificate{NewTestRoot(t, a.domain, epochStart.Add(time.Hour))}, a.roots...)})
	if err != nil {
		t.Fatal(err)
	}
	p.set(content, epochStart)
	if _, out := publishAt(t, p, epochStart); len(out) != 2 || p.saved.BundleSequence <= before {
		t.Errorf("sequence %d after %d", p.saved.BundleSequence, before)
	}
}

// TestPublisherClockAhead: after the clock was far ahead, peers would refuse every number until then; so an epoch begins.
func TestPublisherClockAhead(t *testing.T) {
	a := newAuthor(t, "eu")
	p := newTestPublisher(t, a, openTestKeys(t, t.TempDir()), "")
	publishAt(t, p, epochStart.Add(24*time.Hour))
	ahead := p.saved.BundleSequence
	h, out := publishAt(t, p, epochStart)
	if h.epoch != 2 || h.seq != uint64(epochStart.UnixMilli()) || out[0].record.kind != RecordMemberRoot {
		t.Errorf("(%d, %d)", h.epoch, h.seq)
	}
	if p.saved.BundleSequence < ahead {
		t.Error("the bundle's sequence went back")
	}
	// A little ahead is no reason.
	publishAt(t, p, epochStart.Add(time.Minute))
	if h, _ := publishAt(t, p, epochStart); h.epoch != 2 {
		t.Errorf("epoch %d", h.epoch)
	}
}

func TestPublisherHeard(t *testing.T) {
	a := newAuthor(t, "eu")
	keys := openTestKeys(t, t.TempDir())
	p := newTestPublisher(t, a, keys, "")
	now := epochStart
	publishAt(t, p, now)
	echo, root := p.head, p.root
	publishAt(t, p, now.Add(time.Second))
	if !p.claimed(echo) || !p.claimed(root) || p.claimed(a.tell(1, now, nil).head) {
		t.Error("our own is not known as our own, or another's is")
	}
	for _, r := range []*record{echo, root, p.head} {
		if got := reasonOf(t, p.heard(wire(t, r), now, now)); got != "duplicate" {
			t.Errorf("%s of ours: %q", r.kind, got)
		}
	}
	// Somebody else has our key.
	signing := keys.present().signing
	said := head{
		domain: a.domain, cluster: a.cluster, epoch: 1, seq: p.saved.Seq + 1000, issued: now, expires: now.Add(time.Minute),
		refs: []ref{{RecordTrustBundle, 0, Hash{}}},
	}
	stolen := a.sealed(said.seal(signing))
	if got := reasonOf(t, p.heard(wire(t, stolen), now, now)); got != OwnKeyUsedByOther {
		t.Errorf("%q", got)
	}
	if h, _ := publishAt(t, p, now); h.seq <= said.seq {
		t.Errorf("number %d, and others have heard %d", h.seq, said.seq)
	}
	// It can't run our numbers away.
	before := p.saved.Seq
	said.seq = 1 << 62
	if got := reasonOf(t, p.heard(wire(t, a.sealed(said.seal(signing))), now, now)); got != OwnKeyUsedByOther || p.saved.Seq != before {
		t.Errorf("%q, number %d", got, p.saved.Seq)
	}
	forged := wire(t, p.head)
	forged.signatures[0].bytes[0] ^= 1
	if got := reasonOf(t, p.heard(forged, now, now)); got != BadSignature {
		t.Errorf("%q", got)
	}
}

// Whatever the limits let through, the Head can be made.
func TestTheFullestHeadFits(t *testing.T) {
	a := newAuthor(t, "eu")
	own := Own{Roots: a.roots, RevokedIDs: map[spiffeid.ID]time.Time{}, Acknowledged: map[spiffeid.TrustDomain]uint64{}}
	for i := range maxRevokedKeys {
		own.Revoked = append(own.Revoked, [32]byte{byte(i), byte(i >> 8)})
	}
	for i := range maxRevokedIDs {
		own.RevokedIDs[spiffeid.RequireFromPathf(a.domain, "/%d%s", i, strings.Repeat("x", 19))] = time.Unix(maxBegunBy, 0)
	}
	for i := range maxAcknowledged {
		own.Acknowledged[spiffeid.RequireTrustDomainFromString(fmt.Sprintf("%d.%s", i, strings.Repeat("d", 28)))] = 1 << 62
	}
	content, err := newOwnContent(a.domain, own)
	if err != nil {
		t.Fatal(err)
	}
	p := newTestPublisher(t, a, openTestKeys(t, t.TempDir()), t.TempDir())
	p.set(content, epochStart)
	h, _ := publishAt(t, p, epochStart)
	if len(h.revoked) != maxRevokedKeys || len(h.revokedIDs) != maxRevokedIDs || len(h.acknowledged) != maxAcknowledged {
		t.Errorf("%d keys, %d IDs, %d acknowledgements", len(h.revoked), len(h.revokedIDs), len(h.acknowledged))
	}
}

// JWT keys go with the roots: peers have both under one sequence, which grows when either changes, and doesn't when neither does.
func TestJWTKeysAreTold(t *testing.T) {
	a := newAuthor(t, "eu")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.PublicKey{}
	for i := range 8 { // maps have no order, and the sequence must not hang on it
		keys[fmt.Sprint(i)] = key.Public()
	}
	p, now := newTestPublisher(t, a, openTestKeys(t, t.TempDir()), t.TempDir()), epochStart
	sequence := func(own Own) uint64 {
		content, err := newOwnContent(a.domain, own)
		if err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
		p.set(content, now)
		publishAt(t, p, now)
		read, err := decodeBundle(p.bundle, a.domain)
		if err != nil || len(read.bundle.JWTAuthorities) != len(own.JWTKeys) {
			t.Fatalf("%d keys, want %d: %v", len(read.bundle.JWTAuthorities), len(own.JWTKeys), err)
		}
		return read.sequence
	}
	bare := sequence(Own{Roots: a.roots})
	with := sequence(Own{Roots: a.roots, JWTKeys: keys})
	if again := sequence(Own{Roots: a.roots, JWTKeys: keys}); with <= bare || again != with {
		t.Errorf("sequences %d, %d, %d", bare, with, again)
	}
}

func TestOwnContent(t *testing.T) {
	a := newAuthor(t, "eu")
	if c, err := newOwnContent(a.domain, Own{}); c != nil || err == nil {
		t.Error("published without a root")
	}
	if c, err := newOwnContent(a.domain, Own{Roots: a.roots, Revoked: make([][32]byte, maxRevokedKeys+1)}); c != nil || err == nil {
		t.Error("left a revocation out")
	}
	many := map[spiffeid.ID]time.Time{}
	for i := range maxRevokedIDs + 1 {
		many[spiffeid.RequireFromPathf(a.domain, "/%d", i)] = epochStart
	}
	long := map[spiffeid.ID]time.Time{}
	for i := range 10 {
		long[spiffeid.RequireFromPathf(a.domain, "/%d%s", i, strings.Repeat("x", 2000))] = epochStart
	}
	foreign := map[spiffeid.ID]time.Time{spiffeid.RequireFromString("spiffe://elsewhere.example/a"): epochStart}
	for _, ids := range []map[spiffeid.ID]time.Time{many, long, foreign} {
		if c, err := newOwnContent(a.domain, Own{Roots: a.roots, RevokedIDs: ids}); c != nil || err == nil {
			t.Error("left a revoked ID out, or told of another domain's")
		}
	}
	marks := map[spiffeid.TrustDomain]uint64{}
	for i := range 1000 {
		marks[spiffeid.RequireTrustDomainFromString(fmt.Sprintf("%d.%s", i, strings.Repeat("d", 200)))] = 1
	}
	if c, err := newOwnContent(a.domain, Own{Roots: a.roots, Acknowledged: marks}); c == nil || len(c.marks) == 0 || err == nil {
		t.Errorf("too many acknowledgements must not keep the rest from being told, but be said: %v", err)
	}
	c, err := newOwnContent(a.domain, Own{Roots: a.roots, Gateways: []Gateway{{ID: "g"}}})
	if c == nil || c.gateways != nil || err == nil {
		t.Errorf("a gateway without an identity: %v", err)
	}
	c, err = newOwnContent(a.domain, Own{Roots: a.roots, Revoked: [][32]byte{{2}, {1}, {2}}})
	if err != nil || len(c.revoked) != 2 || c.revoked[0] != [32]byte{1} {
		t.Errorf("%v: %v", c.revoked, err)
	}
}
