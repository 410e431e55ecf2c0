package federation

import (
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/isthmus-mesh/isthmus/trust"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"
)

var discard = slog.New(slog.DiscardHandler)

func newPeer(tb testing.TB, a *author, dir string) *peer {
	tb.Helper()
	s, err := openStore(dir, discard)
	if err != nil {
		tb.Fatal(err)
	}
	return recall(a.spec(), s, Thresholds{}, discard)
}

// give gives records to a peer as the loop would, and returns why the last was refused.
func give(tb testing.TB, p *peer, now time.Time, records ...*record) Reason {
	tb.Helper()
	var why Reason
	for _, r := range records {
		r = wire(tb, r)
		switch r.kind {
		case RecordMemberRoot:
			why = reasonOf(tb, p.acceptRoot(r, now))
		case RecordHead:
			why = reasonOf(tb, p.acceptHead(r, now))
		default:
			why = reasonOf(tb, p.acceptPart(r))
		}
	}
	return why
}

func TestAcceptRoot(t *testing.T) {
	a, other := newAuthor(t, "us"), newAuthor(t, "xx")
	now := epochStart
	first := a.memberRoot(nil)
	for _, test := range []struct {
		what string
		give *record
		want Reason
	}{
		{"good", first, ""},
		{"issued a little ahead", a.memberRoot(func(m *memberRoot) { m.issued = now.Add(MaxAhead) }), ""},
		{"issued ahead", a.memberRoot(func(m *memberRoot) { m.issued = now.Add(MaxAhead + time.Second) }), InFuture},
		{"ended", a.memberRoot(func(m *memberRoot) { m.issued, m.notAfter = now.Add(-2*time.Hour), now }), HasExpired},
		{"of another domain", a.memberRoot(func(m *memberRoot) { m.domain = other.domain }), WrongDomain},
		{"signed by another", other.memberRoot(func(m *memberRoot) { m.domain = a.domain }), UnknownKey},
		{"with the pinned key, signed by another", a.sealed(memberRoot{
			domain: a.domain, epoch: 1, signingKeys: []ed25519.PublicKey{public(other.signing)}, issued: now,
			notAfter: now.Add(time.Hour), rootKey: public(a.root),
		}.seal(other.root)), BadSignature},
		{"without a key", a.memberRoot(func(m *memberRoot) { m.signingKeys = nil }), Malformed},
		{"with too many keys", a.memberRoot(func(m *memberRoot) {
			for range maxSigningKeys {
				m.signingKeys = append(m.signingKeys, public(a.signing))
			}
		}), Malformed},
		{"of epoch 0", a.memberRoot(func(m *memberRoot) { m.epoch = 0 }), Malformed},
		{"for ever", a.memberRoot(func(m *memberRoot) { m.notAfter = now.Add(maxRootLifetime + time.Hour) }), Malformed},
	} {
		p := newPeer(t, a, "")
		if got := give(t, p, now, test.give); got != test.want {
			t.Errorf("%s: %q, want %q", test.what, got, test.want)
		}
		if (p.root != nil) != (test.want == "") {
			t.Errorf("%s: in force: %v", test.what, p.root != nil)
		}
	}

	p := newPeer(t, a, "")
	second := a.nextEpoch()
	if got := give(t, p, now, first, first); got != "duplicate" {
		t.Errorf("twice: %q", got)
	}
	if got := give(t, p, now, second); got != "" {
		t.Errorf("next epoch: %q", got)
	}
	if got := give(t, p, now, first); got != Replayed {
		t.Errorf("the one before: %q", got)
	}
	if got := give(t, p, now, a.memberRoot(func(m *memberRoot) { m.notAfter = now.Add(time.Hour) })); got != Equivocation || p.quarantine == "" {
		t.Errorf("another of the same epoch: %q", got)
	}
}

func TestAcceptHead(t *testing.T) {
	a, other := newAuthor(t, "us"), newAuthor(t, "xx")
	now := epochStart
	for _, test := range []struct {
		what   string
		change func(*head)
		want   Reason
	}{
		{"good", nil, ""},
		{"a little ahead", func(h *head) {
			h.issued, h.seq = now.Add(MaxAhead), seqAt(now.Add(MaxAhead))
			h.expires = h.issued.Add(time.Minute)
		}, ""},
		{"issued ahead", func(h *head) { h.issued = now.Add(MaxAhead + time.Second); h.expires = h.issued.Add(time.Minute) }, InFuture},
		{"numbered ahead", func(h *head) { h.seq = seqAt(now.Add(MaxAhead)) + 1 }, InFuture},
		{"numbered to the end", func(h *head) { h.seq = 1<<64 - 1 }, InFuture},
		{"ended", func(h *head) { h.issued, h.expires = now.Add(-HeadLifetime), now }, HasExpired},
		{"good for long", func(h *head) { h.expires = now.Add(maxHeadLifetime + time.Second) }, Malformed},
		{"ends before it begins", func(h *head) { h.expires = h.issued }, Malformed},
		{"of another domain", func(h *head) { h.domain = other.domain }, WrongDomain},
		{"of another cluster", func(h *head) { h.cluster = other.cluster }, WrongCluster},
		{"of the next epoch", func(h *head) { h.epoch++ }, Replayed},
		{"number 0", func(h *head) { h.seq = 0 }, Malformed},
		{"without a bundle", func(h *head) { h.refs = h.refs[1:] }, Malformed},
		{"a record twice", func(h *head) { h.refs = append(h.refs, h.refs[1]) }, Malformed},
		{"a shard too many", func(h *head) { h.refs = append(h.refs, ref{RecordCatalogShard, Shards, Hash{}}) }, Malformed},
		{"a record of no known type", func(h *head) { h.refs = append(h.refs, ref{"other.v1", 0, Hash{}}) }, Malformed},
		{"a long region", func(h *head) { h.region = strings.Repeat("x", maxRegion+1) }, TooLarge},
		{"a short hash of the one before", func(h *head) { h.previous = []byte{1} }, Malformed},
		{"too many revoked IDs", func(h *head) {
			h.revokedIDs = map[spiffeid.ID]time.Time{}
			for i := range maxRevokedIDs + 1 {
				h.revokedIDs[spiffeid.RequireFromPathf(a.domain, "/%d", i)] = now
			}
		}, TooLarge},
		{"a revoked ID of another domain", func(h *head) {
			h.revokedIDs = map[spiffeid.ID]time.Time{spiffeid.RequireFromPath(other.domain, "/a"): now}
		}, WrongDomain},
		{"the domain as revoked ID", func(h *head) { h.revokedIDs = map[spiffeid.ID]time.Time{a.domain.ID(): now} }, Malformed},
		{"a revoked ID before time began", func(h *head) {
			h.revokedIDs = map[spiffeid.ID]time.Time{spiffeid.RequireFromPath(a.domain, "/a"): time.Unix(1<<41, 0)}
		}, Malformed},
		{"too much acknowledged", func(h *head) {
			h.acknowledged = map[spiffeid.TrustDomain]uint64{}
			for i := range maxAcknowledged + 1 {
				h.acknowledged[spiffeid.RequireTrustDomainFromString(fmt.Sprintf("d%d.example", i))] = 1
			}
		}, TooLarge},
		{"too many revoked keys", func(h *head) { h.revoked = make([][32]byte, maxRevokedKeys+1) }, Malformed},
	} {
		p := newPeer(t, a, "")
		if got := give(t, p, now, a.memberRoot(nil), a.tell(1, now, test.change).head); got != test.want {
			t.Errorf("%s: %q, want %q", test.what, got, test.want)
		}
		if (p.newest != nil) != (test.want == "") {
			t.Errorf("%s: in force: %v", test.what, p.newest != nil)
		}
	}
	p := newPeer(t, a, "")
	give(t, p, now, a.memberRoot(nil))
	forged := *a
	forged.signing = other.signing
	if got := give(t, p, now, forged.tell(1, now, nil).head); got != BadSignature {
		t.Errorf("signed by another: %q", got)
	}
	// A signature of ours beside a wrong one is good enough; a wrong one under our key's name is not.
	r := a.tell(1, now, nil).head
	r.signatures[0].bytes[0] ^= 1
	if p.acceptHead(r, now) == nil {
		t.Error("a changed signature was taken")
	}
	if got := give(t, p, now.Add(RootLifetime), a.tell(1, now.Add(RootLifetime), nil).head); got != HasExpired {
		t.Errorf("after the end of the member root: %q", got)
	}
}

func TestOrder(t *testing.T) {
	a := newAuthor(t, "us")
	now := epochStart
	p := newPeer(t, a, "")
	first, second, third := a.tell(1, now, nil), a.tell(2, now.Add(time.Second), nil), a.tell(3, now.Add(2*time.Second), nil)
	now = now.Add(3 * time.Second)
	give(t, p, now, a.memberRoot(nil))
	give(t, p, now, second.all()...)
	if got := versionOf(t, p.view(now)); got != 2 {
		t.Fatalf("version %d", got)
	}
	if got := give(t, p, now, first.head); got != Replayed {
		t.Errorf("the one before: %q", got)
	}
	if got := give(t, p, now, second.head); got != "duplicate" {
		t.Errorf("the same: %q", got)
	}
	if got := give(t, p, now, first.parts[1]); got != Unnamed {
		t.Errorf("a part of the one before: %q", got)
	}
	if got := give(t, p, now, third.parts[1]); got != Unnamed {
		t.Errorf("a part that comes before its head: %q", got)
	}
	// The view moves when all is there, and not before.
	give(t, p, now, third.head)
	for _, part := range third.parts {
		if v := p.view(now); versionOf(t, v) != 2 || v.Seq != second.seq {
			t.Errorf("version %d, number %d, while parts are missing", versionOf(t, v), v.Seq)
		}
		give(t, p, now, part)
	}
	if v := p.view(now); versionOf(t, v) != 3 || v.Seq != third.seq || v.Epoch != 1 {
		t.Errorf("version %d", versionOf(t, v))
	}
	if len(p.parts) != len(third.parts) {
		t.Errorf("%d parts kept of %d", len(p.parts), len(third.parts))
	}
	// The parts stay under a newer Head that names the same; readers see that nothing changed.
	before := p.view(now)
	give(t, p, now, a.tell(3, now, nil).head)
	if after := p.view(now); after.Seq == before.Seq || &after.Exports[0] != &before.Exports[0] {
		t.Error("a new head with the same parts did not come into force, or brought other exports")
	}
}

func TestNewEpoch(t *testing.T) {
	a := newAuthor(t, "us")
	now := epochStart
	p := newPeer(t, a, "")
	give(t, p, now, a.memberRoot(nil))
	give(t, p, now, a.tell(1, now, nil).all()...)
	old := *a
	give(t, p, now, a.nextEpoch())
	if versionOf(t, p.view(now)) != 1 {
		t.Error("the last good went with the epoch")
	}
	if got := give(t, p, now, old.tell(2, now.Add(time.Second), nil).head); got != BadSignature {
		t.Errorf("the key of the epoch before: %q", got)
	}
	// Numbers begin anew with an epoch.
	give(t, p, now, a.tell(3, now.Add(-time.Minute), nil).all()...)
	if v := p.view(now); versionOf(t, v) != 3 || v.Epoch != 2 {
		t.Errorf("version %d", versionOf(t, v))
	}
}

func TestEquivocation(t *testing.T) {
	a := newAuthor(t, "us")
	now := epochStart
	dir := t.TempDir()
	p := newPeer(t, a, dir)
	give(t, p, now, a.memberRoot(nil))
	first := a.tell(1, now, nil)
	give(t, p, now, first.all()...)
	give(t, p, now, a.tell(2, now.Add(time.Second), nil).all()...)
	// The second history is told late, and of a number that is past.
	if got := give(t, p, now, a.tell(7, now, nil).head); got != Equivocation {
		t.Fatalf("another head with a number of before: %q", got)
	}
	check := func(what string, p *peer) {
		t.Helper()
		v := p.view(now)
		if !v.Quarantined || v.State() != "Quarantined" || versionOf(t, v) != 2 || !strings.Contains(v.Reason, "two stories") {
			t.Errorf("%s: %s, version %d: %s", what, v.State(), versionOf(t, v), v.Reason)
		}
		if got := give(t, p, now, a.tell(3, now.Add(time.Minute), nil).head); got != InQuarantine {
			t.Errorf("%s: the next head: %q", what, got)
		}
	}
	check("at once", p)
	check("after a restart", newPeer(t, a, dir))
	if v := p.view(now.Add(2 * time.Hour)); v.Freshness != Frozen {
		t.Errorf("it ages no more: %s", v.Freshness)
	}
	// A new epoch, signed by the root key, ends it.
	give(t, p, now, a.nextEpoch())
	give(t, p, now, a.tell(4, now, nil).all()...)
	if v := p.view(now); v.Quarantined || versionOf(t, v) != 4 {
		t.Errorf("%s, version %d", v.State(), versionOf(t, v))
	}
	// So does removing it and adding it again; but not its mark.
	last := a.tell(5, now.Add(time.Second), nil)
	give(t, p, now, last.all()...)
	give(t, p, now, a.tell(6, now.Add(time.Second), nil).head)
	if !p.view(now).Quarantined {
		t.Fatal("the same number twice went unseen")
	}
	if err := p.store.forget(a.spec().RootFingerprint); err != nil {
		t.Fatal(err)
	}
	p = newPeer(t, a, dir)
	if v := p.view(now); v.Quarantined || v.Freshness != Waiting {
		t.Errorf("%s", v.State())
	}
	give(t, p, now, a.memberRoot(nil))
	if got := give(t, p, now, a.tell(4, now, nil).head); got != Replayed {
		t.Errorf("an old head, after it was removed and added: %q", got)
	}
	if got := give(t, p, now, a.tell(6, now.Add(time.Second), nil).head); got != Equivocation {
		t.Errorf("the other story, after it was removed and added: %q", got)
	}
}

// What a Head revokes and acknowledges is the peer's word from the moment that it is in force, and gone with the next that doesn't say it.
func TestHeadSaysWhatIsRevoked(t *testing.T) {
	a := newAuthor(t, "us")
	p, now := newPeer(t, a, t.TempDir()), epochStart
	id := spiffeid.RequireFromPath(a.domain, "/ns/shop/sa/cart")
	give(t, p, now, a.memberRoot(nil))
	give(t, p, now, a.tell(1, now, func(h *head) {
		h.revokedIDs = map[spiffeid.ID]time.Time{id: now.Add(time.Millisecond)}
		h.acknowledged = map[spiffeid.TrustDomain]uint64{a.domain: 7}
	}).all()...)
	v := p.view(now)
	if until := v.Bundle.RevokedIDs[id]; !until.Equal(now.Add(time.Second)) {
		t.Errorf("revoked up to %s, want the next second", until)
	}
	if v.Acknowledged[a.domain] != 7 || v.BundleSequence != 1 {
		t.Errorf("acknowledged %v, sequence %d", v.Acknowledged, v.BundleSequence)
	}
	now = now.Add(time.Second)
	give(t, p, now, a.tell(1, now, nil).all()...)
	if v := p.view(now); len(v.Bundle.RevokedIDs) > 0 || len(v.Acknowledged) > 0 {
		t.Errorf("revoked %v, acknowledged %v", v.Bundle.RevokedIDs, v.Acknowledged)
	}
}

func TestBundleGoesBack(t *testing.T) {
	a := newAuthor(t, "us")
	now := epochStart
	dir := t.TempDir()
	p := newPeer(t, a, dir)
	with := func(version int, at time.Time, sequence uint64) []*record {
		bundle := a.sealed(encodeBundle(a.domain, trust.Bundle{Authorities: a.roots}, sequence))
		d := a.tell(version, at, func(h *head) { h.refs[0].hash = bundle.hash })
		d.parts[0] = bundle
		return d.all()
	}
	give(t, p, now, a.memberRoot(nil))
	give(t, p, now, with(1, now, 5)...)
	give(t, p, now, with(2, now.Add(1*time.Second), 4)...)
	v := p.view(now)
	if versionOf(t, v) != 1 || !strings.Contains(v.Reason, string(BundleWentBack)) {
		t.Errorf("version %d: %s", versionOf(t, v), v.Reason)
	}
	// Nor may the same sequence mean something else, also after a restart without the cut.
	if err := os.Remove(filepath.Join(p.store.peerDir(a.spec().RootFingerprint), cutFile)); err != nil {
		t.Fatal(err)
	}
	p = newPeer(t, a, dir)
	a.roots = append(a.roots, NewTestRoot(t, a.domain, now.Add(time.Hour)))
	give(t, p, now, with(3, now.Add(2*time.Second), 5)...)
	if v := p.view(now); v.Freshness != Waiting || !strings.Contains(v.Reason, string(BundleWentBack)) {
		t.Errorf("%s: %s", v.Freshness, v.Reason)
	}
	give(t, p, now, with(4, now.Add(3*time.Second), 6)...)
	if v := p.view(now); v.Freshness != Fresh || v.Reason != "" || len(v.Bundle.Authorities) != 2 {
		t.Errorf("%s: %s", v.Freshness, v.Reason)
	}
}

// TestBadPart: a Head whose parts are not what they should be does not come into force, and the next does.
func TestBadPart(t *testing.T) {
	a, other := newAuthor(t, "us"), newAuthor(t, "xx")
	now := epochStart
	strange := other.tell(9, now, nil).parts
	for i, what := range []string{"trust bundle", "gateways", "shard"} {
		p := newPeer(t, a, "")
		give(t, p, now, a.memberRoot(nil))
		give(t, p, now, a.tell(1, now, nil).all()...)
		bad := a.tell(2, now.Add(time.Second), func(h *head) { h.refs[i].hash = strange[i].hash })
		bad.parts[i] = strange[i]
		give(t, p, now, bad.all()...)
		if v := p.view(now); versionOf(t, v) != 1 || !strings.Contains(v.Reason, string(WrongDomain)) {
			t.Errorf("%s of another domain: version %d: %s", what, versionOf(t, v), v.Reason)
		}
		give(t, p, now, a.tell(3, now.Add(2*time.Second), nil).all()...)
		if v := p.view(now); versionOf(t, v) != 3 || v.Reason != "" {
			t.Errorf("after a bad %s: version %d: %s", what, versionOf(t, v), v.Reason)
		}
	}
}

func TestRevoked(t *testing.T) {
	a := newAuthor(t, "us")
	p := newPeer(t, a, "")
	key := [32]byte{1, 2, 3}
	give(t, p, epochStart, a.memberRoot(nil))
	give(t, p, epochStart, a.tell(1, epochStart, func(h *head) { h.revoked = [][32]byte{key} }).all()...)
	if _, ok := p.view(epochStart).Bundle.Revoked[key]; !ok {
		t.Error("a revoked key is not in the view's bundle")
	}
}

// TestAnyOrder gives the records of a peer's life in any order, any number of times, with restarts: a view is always of one cut,
// never goes back, and is the last one once the last records have come in order.
func TestAnyOrder(t *testing.T) {
	a := newAuthor(t, "us")
	var life []*record
	var last told
	newest := 0
	lastRoot := a.memberRoot(nil)
	for epoch := range 2 {
		if epoch > 0 {
			lastRoot = a.nextEpoch()
		}
		life = append(life, lastRoot)
		for range 3 {
			newest++
			last = a.tell(newest, epochStart.Add(time.Duration(newest)*time.Second), nil)
			life = append(life, last.all()...)
		}
	}
	now := epochStart.Add(time.Minute)
	rapid.Check(t, func(r *rapid.T) {
		disk, dir := rapid.IntRange(0, 9).Draw(r, "disk") == 0, "" // few: it is slow
		if disk {
			dir = t.TempDir()
		}
		p := newPeer(t, a, dir)
		var at mark
		seen := 0
		look := func() {
			v := p.view(now)
			version := versionOf(t, v)
			if to := (mark{v.Epoch, v.Seq}); to.compare(at) < 0 || version < seen {
				r.Fatalf("went back from %v to %v", at, to)
			} else {
				at, seen = to, version
			}
			if v.Quarantined {
				r.Fatalf("quarantined: %s", v.Reason)
			}
		}
		for range rapid.IntRange(0, 60).Draw(r, "records") {
			give(t, p, now, rapid.SampledFrom(life).Draw(r, "record"))
			look()
			if disk && rapid.IntRange(0, 9).Draw(r, "restart") == 0 {
				p = newPeer(t, a, dir)
				look()
			}
		}
		give(t, p, now, lastRoot)
		give(t, p, now, last.all()...)
		look()
		if seen != newest {
			r.Fatalf("version %d in the end, want %d", seen, newest)
		}
	})
}
